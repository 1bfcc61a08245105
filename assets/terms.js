/* What the glossary says of a word: on hover, on keyboard focus, and on a first tap. Without this script the word
   is a link whose title says it. Escape closes; the pointer may move onto the box. */
document.addEventListener("DOMContentLoaded", () => {
  const box = document.body.appendChild(document.createElement("div"));
  box.id = "meaning";
  box.setAttribute("role", "tooltip");
  box.hidden = true;
  let shown = null, waiting = 0;

  const hide = () => {
    shown?.removeAttribute("aria-describedby");
    shown = null;
    box.hidden = true;
  };
  const later = () => { clearTimeout(waiting); waiting = setTimeout(hide, 250); };
  const stay = () => clearTimeout(waiting);

  const show = (word, tapped) => {
    stay();
    if (shown && shown !== word) hide();
    shown = word;
    box.textContent = word.dataset.meaning;
    if (tapped) {
      const more = box.appendChild(document.createElement("a"));
      more.href = word.href;
      more.textContent = "Glossary";
    }
    box.hidden = false;
    word.setAttribute("aria-describedby", "meaning");
    const at = word.getClientRects()[0], room = document.documentElement.clientWidth - box.offsetWidth - 8;
    const below = at.bottom + box.offsetHeight + 8 < innerHeight;
    box.style.left = `${scrollX + Math.max(8, Math.min(at.left, room))}px`;
    box.style.top = `${scrollY + (below ? at.bottom + 6 : at.top - box.offsetHeight - 6)}px`;
  };

  document.querySelectorAll("a.term").forEach((word) => {
    let finger = false;
    word.dataset.meaning = word.title;
    word.removeAttribute("title");
    word.addEventListener("pointerdown", (event) => { finger = event.pointerType !== "mouse"; });
    word.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") show(word); });
    word.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") later(); });
    word.addEventListener("focus", () => { if (!finger) show(word); });
    word.addEventListener("blur", later);
    word.addEventListener("click", (event) => {
      if (!finger) return;
      finger = false;
      event.preventDefault();
      show(word, true);
    });
  });
  box.addEventListener("pointerenter", stay);
  box.addEventListener("pointerleave", later);
  box.addEventListener("focusin", stay);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("pointerdown", (event) => { if (shown && !event.target.closest("a.term, #meaning")) hide(); });
});
