/* Scrollable code, formulas and tables can be reached by keyboard. */
document.addEventListener("DOMContentLoaded", () => {
  const reach = () => document.querySelectorAll("pre, .bd-article table, mjx-container[display='true']").forEach((box) => {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
    else if (box.tabIndex === 0) box.removeAttribute("tabindex");
  });
  reach();
  addEventListener("load", () => setTimeout(reach, 500));
  addEventListener("resize", reach);
});
