/* What a reader has read: a tick a section, kept in this browser alone (localStorage), sent nowhere.
 * Where nothing can be kept, ticks last as long as the page. */
(() => {
const KEY = "ml-collage:read"; // {chapter: {read: [id of a section], of: number of sections}}
const LAST = "appendix"; // from here on a chapter is for looking things up
let here = {};
let blocked = false; // nothing can be written: what is kept is older than what this page knows

const load = () => {
  if (blocked) return;
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    here = kept && typeof kept === "object" && !Array.isArray(kept) ? kept : {};
  } catch { /* unreadable or damaged: what this page knows */ }
};
const save = () => {
  try {
    if (Object.keys(here).length) localStorage.setItem(KEY, JSON.stringify(here));
    else localStorage.removeItem(KEY);
  } catch { blocked = true; }
};
const readOf = (chapter) => (Array.isArray(here[chapter]?.read) ? here[chapter].read : []);

const made = (tag, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
};
const nameOf = (address) => address.split("/").pop().replace(/\.html$/, "");

/** A button at the end of each section of a chapter, and a mark beside it in the contents. */
function ticks() {
  const chapter = nameOf(location.pathname);
  const all = [...document.querySelectorAll("article.bd-article > section > section")];
  const end = all.findIndex((section) => section.id === LAST);
  const sections = all.slice(0, end < 0 ? all.length : end);
  const buttons = sections.map((section) => {
    const button = made("button", { type: "button", className: "tick" });
    button.onclick = () => {
      load();
      const read = new Set(readOf(chapter));
      if (!read.delete(section.id)) read.add(section.id);
      here[chapter] = { read: sections.map((s) => s.id).filter((id) => read.has(id)), of: sections.length };
      if (!read.size) delete here[chapter];
      save();
      show();
    };
    section.append(button);
    return button;
  });
  const show = () => sections.forEach((section, i) => {
    const read = readOf(chapter).includes(section.id), words = read ? "✓ Read" : "Mark as read";
    const title = section.querySelector("h2").firstChild.textContent.trim();
    buttons[i].setAttribute("aria-pressed", read);
    buttons[i].textContent = words;
    buttons[i].setAttribute("aria-label", `${words}: ${title}`); // what is said begins with what is seen
    document.querySelector(`.bd-sidebar-secondary a[href="#${section.id}"]`)?.classList.toggle("read", read);
  });
  return show;
}

/** How far each chapter is, on its card, and one button that forgets it all. */
function cards(gallery) {
  const forget = made("button", { type: "button", className: "forget", textContent: "Clear my ticks" });
  const said = made("p", { tabIndex: -1 });
  said.setAttribute("role", "status");
  const line = made("div", { className: "progress-bar-line" }, said, forget);
  gallery.after(line);
  const show = () => {
    let any = false;
    for (const card of gallery.querySelectorAll("li.paper")) {
      card.querySelector("p.read")?.remove();
      const name = nameOf(card.querySelector("h3 a").pathname), read = readOf(name).length, of = Number(here[name]?.of);
      if (!read || !(of >= read)) continue;
      any = true;
      const words = read === of ? "✓ all read" : `${read} of ${of} sections read`;
      const bar = made("progress", { max: of, value: read });
      bar.setAttribute("aria-label", words);
      card.querySelector("div:has(> h3)").append(made("p", { className: "read" }, bar, words));
    }
    if (any) said.textContent = "Your ticks are kept in this browser and nowhere else.";
    line.hidden = forget.hidden = !any;
  };
  forget.onclick = () => {
    here = {};
    save();
    show();
    line.hidden = false;
    said.textContent = "Cleared.";
    said.focus();
  };
  return show;
}

document.addEventListener("DOMContentLoaded", () => {
  load();
  const gallery = document.querySelector("ul.gallery");
  const show = gallery ? cards(gallery) : document.getElementById("what-to-remember") ? ticks() : null;
  show?.();
  if (show) addEventListener("pageshow", (event) => { if (event.persisted) { load(); show(); } });
});
})();
