/* Chapter 34: a small trained Decision Transformer walks a graph for a return that is asked for. */
import { finite } from "./pen.js";

/** From each node where the edges lead; 0 is the goal. */
export const WAYS = { 1: [0, 3, 5], 2: [0, 4, 8], 3: [1, 5, 4], 4: [2, 6, 3], 5: [3, 7, 6], 6: [4, 8, 9], 7: [5, 9, 8], 8: [6, 10, 7], 9: [7, 10], 10: [8, 9] };
const LONGEST = 10, CONTEXT = 3, NODES = 11;

/** The weights, in the order in which the package keeps them, as matrices. */
export function network({ weights, unit, width: d, layers, heads, scale }) {
  let at = 0;
  const take = (n) => weights.slice(at, (at += n)).map((v) => v * unit);
  const matrix = (inputs, outputs) => Array.from({ length: inputs }, () => take(outputs));
  const affine = (inputs, outputs) => ({ W: matrix(inputs, outputs), b: take(outputs) });
  const norm = () => ({ gain: take(d), bias: take(d) });
  const net = { d, heads, scale, R: affine(1, d), s: affine(NODES, d), a: matrix(NODES, d), t: matrix(LONGEST, d), norm: norm(), blocks: [] };
  for (let i = 0; i < layers; i++) {
    net.blocks.push({ first: norm(), qkv: affine(d, 3 * d), out: affine(d, d), second: norm(), up: affine(d, 4 * d), down: affine(4 * d, d) });
  }
  return Object.assign(net, { last: norm(), head: affine(d, NODES) });
}

const linear = ({ W, b }, x) => {
  const y = [...b];
  x.forEach((v, i) => { if (v) for (let j = 0; j < y.length; j++) y[j] += v * W[i][j]; });
  return y;
};
function normed({ gain, bias }, x) {
  const mean = x.reduce((s, v) => s + v, 0) / x.length;
  const variance = x.reduce((s, v) => s + (v - mean) ** 2, 0) / x.length;
  return x.map((v, i) => ((v - mean) / Math.sqrt(variance + 1e-5)) * gain[i] + bias[i]);
}
const plus = (...vectors) => vectors[0].map((_, i) => vectors.reduce((s, v) => s + v[i], 0));

/** Logits at each state token of (R_1, s_1, a_1, ..., R_K, s_K), and whom the last token looked at. */
export function predict(net, R, s, a, t) {
  const one = (k) => Array.from({ length: NODES }, (_, i) => (i === k ? 1 : 0));
  let x = R.flatMap((r, k) => [linear(net.R, [r / net.scale]), linear(net.s, one(s[k])), net.a[a[k] ?? 0]]
    .map((v) => normed(net.norm, plus(v, net.t[t[k]])))).slice(0, -1);
  let looks = [];
  const size = net.d / net.heads;
  for (const block of net.blocks) {
    const qkv = x.map((v) => linear(block.qkv, normed(block.first, v)));
    looks = x.map(() => 0);
    x = x.map((v, i) => {
      const mixed = Array(net.d).fill(0);
      for (let h = 0; h < net.heads; h++) {
        const part = (row, which) => row.slice(which * net.d + h * size, which * net.d + (h + 1) * size);
        const q = part(qkv[i], 0);
        const scores = qkv.slice(0, i + 1).map((row) => part(row, 1).reduce((sum, k, j) => sum + k * q[j], 0) / Math.sqrt(size));
        const most = Math.max(...scores), exps = scores.map((z) => Math.exp(z - most)), total = exps.reduce((p, e) => p + e, 0);
        exps.forEach((e, j) => {
          part(qkv[j], 2).forEach((value, n) => { mixed[h * size + n] += (e / total) * value; });
          if (i === x.length - 1) looks[j] += e / total / net.heads;
        });
      }
      return plus(v, linear(block.out, mixed));
    });
    x = x.map((v) => plus(v, linear(block.down, linear(block.up, normed(block.second, v)).map((z) => Math.max(0, z)))));
  }
  return { logits: x.filter((_, i) => i % 3 === 1).map((v) => linear(net.head, normed(net.last, v))), looks };
}

/** One step of a walk {R, s, a}: the likeliest action; a move along no edge leaves the walker in place. */
export function step(net, walk) {
  const from = Math.max(0, walk.s.length - CONTEXT), last = (list) => list.slice(from);
  const { logits, looks } = predict(net, last(walk.R), last(walk.s), last(walk.a), last(walk.s.map((_, i) => i)));
  const scores = logits.at(-1), action = scores.indexOf(Math.max(...scores)), here = walk.s.at(-1);
  return { R: [...walk.R, walk.R.at(-1) + 1], s: [...walk.s, WAYS[here].includes(action) ? action : here], a: [...walk.a, action], looks, from };
}

const place = (node) => [-Math.floor((node + 1) / 2), node ? (node % 2 ? 0.55 : -0.55) : 0];
const away = (node) => Math.floor((node + 1) / 2);

export const demo = {
  caption: "A graph with a star as its goal, and the walk of a small Decision Transformer. Click a node to start there, or use the arrow keys: left and right for the node, up and down for the wish.",
  ratio: 0.82,
  moves: ["node", "asked"],
  data: "decision_transformer.json",
  check(data) { if (!data?.weights?.every(Number.isFinite)) throw new Error("decision_transformer.json does not hold the weights"); },
  controls: {
    asked: { label: "steps asked for", min: 1, max: 10, step: 1, value: 5, digits: 0 },
    node: { hidden: true, min: 1, max: 10, step: 1, value: 5, digits: 0 },
  },
  buttons: { again: "Walk again" },

  begin: (state, data) => ({ net: network(data), clock: 0, walk: { R: [-state.asked], s: [state.node], a: [], looks: [], from: 0 } }),

  press(name, model, state) {
    Object.assign(model, { clock: 0, walk: { R: [-state.asked], s: [state.node], a: [], looks: [], from: 0 } });
    return {};
  },

  touch(model, state, [x, y], phase) {
    if (phase !== "down") return {};
    const far = Object.keys(WAYS).map((n) => Math.hypot(place(Number(n))[0] - x, place(Number(n))[1] - y));
    const near = Math.min(...far);
    return near < 0.4 ? { node: Number(Object.keys(WAYS)[far.indexOf(near)]) } : {};
  },

  over: ({ s }) => s.at(-1) === 0 || s.length > LONGEST,

  advance(model, state, seconds) {
    for (model.clock += 1.6 * seconds; model.clock >= 1 && !this.over(model.walk); model.clock--) model.walk = step(model.net, model.walk);
    return !this.over(model.walk);
  },

  draw(pen, model) {
    this.tokens(pen, model.walk);
    pen.view([-5.45, 0.45], [-1.05, 1.05], [0, 0, 1, 0.64]);
    const edge = (a, b, look, label) => {
      const [x, y] = place(a), [u, v] = place(b), side = [0.12 * (v - y), -0.12 * (u - x)], length = Math.hypot(u - x, v - y);
      const curve = [0.19, 0.3, 0.4, 0.5, 0.6, 0.7, 0.81].map((p) => [x + p * (u - x) + 4 * p * (1 - p) * side[0], y + p * (v - y) + 4 * p * (1 - p) * side[1]]);
      if (length < 0.01) return;
      pen.line(curve.slice(0, -1), { ...look, what: "an edge" });
      pen.arrow(curve.at(-2), curve.at(-1), look);
      if (label) pen.text(curve[3], label, { size: 14, align: "center", base: "middle", bold: true, halo: pen.ground });
    };
    for (const a of Object.keys(WAYS)) for (const b of WAYS[a]) edge(Number(a), b, { colour: pen.data, width: 1, head: 7 });
    const { s } = model.walk, steps = new Map();
    for (let i = 1; i < s.length; i++) {
      const key = `${s[i - 1]} ${s[i]}`;
      steps.set(key, [...(steps.get(key) ?? []), i]);
    }
    for (const [key, when] of steps) {
      const [a, b] = key.split(" ").map(Number);
      if (a === b) pen.text([place(a)[0], place(a)[1] + 0.33], `waits ${when.length}`, { size: 14, align: "center", bold: true });
      else edge(a, b, { colour: pen.method, width: 3 }, when.join(", "));
    }
    for (let node = 0; node < NODES; node++) {
      const here = node === s.at(-1);
      pen.dot(place(node), { r: pen.small ? 12 : 15, colour: node === s[0] || here ? pen.method : node ? pen.muted : pen.ink, rim: here ? pen.ink : pen.ground });
      pen.text(place(node), node ? String(node) : "★", { size: 14, align: "center", base: "middle", colour: pen.ground, bold: true });
    }
  },

  /** The tokens of the last prediction, and how much the newest looked at each. */
  tokens(pen, { R, s, a, looks, from }) {
    if (!looks.length) return;
    const names = looks.map((_, i) => { const k = from + Math.floor(i / 3); return [`${R[k]}`.replace("-", "−"), `${s[k]}`, `→${a[k]}`][i % 3]; });
    pen.view([-0.7, 8.7], [0, 1], [0, 0.66, 1, 1]);
    names.forEach((name, i) => {
      pen.rect([i - 0.42, i + 0.42], [0.16, 0.42], { fill: [pen.method, pen.data, pen.plain][i % 3] });
      pen.text([i, 0.29], name, { size: 15, align: "center", base: "middle", colour: "#fff", bold: true });
      pen.rect([i - 0.42, i + 0.42], [0.46, 0.46 + 0.4 * finite([looks[i]], "attention")[0]], { fill: pen.ink });
    });
    pen.text([-0.45, 0.93], "bars: where the last token (a state) looked when it chose", { size: 13, colour: pen.muted });
    pen.text([-0.45, 0.02], "still to pay, node, move", { size: 13, colour: pen.muted });
  },

  say(model, state) {
    const { s } = model.walk, took = s.length - 1, far = away(state.node);
    const asked = `From node ${state.node}, ${far} step${far > 1 ? "s" : ""} away, asked for ${state.asked}:`;
    const waited = s.some((node, i) => i && node === s[i - 1]) ? " It chose a node that no edge leads to, and waited." : "";
    if (!this.over(model.walk)) return `${asked} step ${took} …`;
    return s.at(-1) === 0 ? `${asked} arrives after ${took}${took === state.asked ? ", as asked" : ""}.${waited}` : `${asked} does not arrive.${waited}`;
  },
};
