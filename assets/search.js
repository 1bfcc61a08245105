/* Excerpts that can be read: formulas of one sign as that sign, longer ones and code left out; an excerpt of a
   place begins at that place. */
const GREEK = { alpha: "α", beta: "β", gamma: "γ", delta: "δ", epsilon: "ε", varepsilon: "ε", eta: "η", theta: "θ", lambda: "λ",
  mu: "μ", nu: "ν", pi: "π", rho: "ρ", sigma: "σ", tau: "τ", phi: "φ", omega: "ω", infty: "∞", times: "×", le: "≤", ge: "≥" };

const plain = (tex) => {
  const text = tex.replace(/^\\[([]|\\[)\]]$/g, "").replace(/\\([a-z]+) ?/gi, (all, name) => GREEK[name] ?? all).trim();
  return /[\\^_{}]/.test(text) || text.length > 12 ? "…" : text;
};

Search.htmlToText = (page, anchor) => {
  const main = new DOMParser().parseFromString(page, "text/html").querySelector('[role="main"] article');
  if (!main) return "";
  const from = anchor ? main.querySelector(`#${CSS.escape(anchor.slice(1))}`) : null;
  const place = from?.closest("section") ?? main;
  // The place's own paragraph and what follows it; the whole section where it is the place itself.
  let start = from && from !== place ? from.closest("p, li, table, figure, .cell, .equation") : null;
  place.querySelectorAll(".headerlink, script, style, .highlight, summary, details.edition, figure.demo, .flipbook, nav")
    .forEach((box) => { if (!box.contains(start)) box.remove(); });
  place.querySelectorAll(".math").forEach((formula) => {
    formula.textContent = formula.matches("div") ? " … " : plain(formula.textContent.trim());
  });
  const tidy = (text) => text.replace(/\s+/g, " ").trim();
  if (!start) return tidy(place.textContent);
  const parts = [];
  for (; start; start = start.nextElementSibling) parts.push(start.textContent);
  return tidy(parts.join(" "));
};
