/* The quiz of a chapter: choices become radio buttons, and a press tells what a choice is worth and why.
 * Nothing is counted or kept. Without this script the choices and their answers are there, folded. */
(() => {
const made = (tag, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
};

const form = (question, number) => {
  const ask = question.querySelector(".quiz-ask"), list = question.querySelector(".quiz-choices");
  const whys = [...question.querySelectorAll(".quiz-answer li")];
  const group = made("fieldset", {}, made("legend", { className: "quiz-ask" }, ...ask.childNodes));
  const labels = [...list.children].map((item, i) => made("label", {},
    made("input", { type: "radio", name: `quiz-${number}`, value: i }),
    made("span", { textContent: `${"ABCD"[i]}. ${item.textContent}` })));
  const said = made("p", { className: "quiz-said" });
  said.setAttribute("role", "status");
  const check = made("button", { type: "button", textContent: "Check" });
  const clean = () => {
    for (const label of labels) delete label.dataset.found;
    said.textContent = "";
    delete said.dataset.found;
  };
  check.onclick = () => {
    const chosen = labels.findIndex((label) => label.firstChild.checked);
    clean();
    if (chosen < 0) { said.textContent = "Choose an answer first."; return; }
    const found = whys[chosen].hasAttribute("data-right") ? "right" : "wrong";
    labels[chosen].dataset.found = said.dataset.found = found;
    said.append(...[...whys[chosen].childNodes].map((node) => node.cloneNode(true)));
  };
  group.onchange = clean;
  group.append(...labels);
  ask.remove();
  list.replaceWith(group);
  group.after(check, said);
};

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".quiz-question").forEach(form));
})();
