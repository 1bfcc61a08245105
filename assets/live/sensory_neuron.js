/* Chapter 33: a cart with a pole, an agent whose sensors may be swapped, and a network whose may not. */
import { normals, uniforms } from "./random.js";

const G = 9.82, CART = 0.5, POLE = 0.5, LENGTH = 0.6, FRICTION = 0.1, FORCE = 10, DT = 0.01, TRACK = 2.4;

/** One step of 0.01 s of cart and pole, [x, v, angle, turning], under an action in [-1, 1]. */
export function tick([x, v, a, w], action) {
  const force = FORCE * Math.min(1, Math.max(-1, action)), sin = Math.sin(a), cos = Math.cos(a), mass = CART + POLE;
  const below = 4 * mass - 3 * POLE * cos * cos, spin = POLE * LENGTH * w * w * sin, push = force - FRICTION * v;
  const dv = (-2 * spin + 3 * POLE * G * sin * cos + 4 * push) / below;
  const dw = (-3 * spin * cos + 6 * mass * G * sin + 6 * push * cos) / (LENGTH * below);
  const state = [x + DT * v, v + DT * dv, a + DT * w, w + DT * dw];
  return { state, reward: ((Math.cos(state[2]) + 1) / 2) * Math.cos((Math.PI * state[0]) / (2 * TRACK)), out: Math.abs(state[0]) > TRACK };
}
export const observe = ([x, v, a, w]) => [x, v, Math.cos(a), Math.sin(a), w];

const sigmoid = (z) => 1 / (1 + Math.exp(-z));
const rows = (flat, from, count, width) => Array.from({ length: count }, (_, i) => flat.slice(from + i * width, from + (i + 1) * width));
const times = (matrix, vector) => matrix.map((row) => row.reduce((s, v, i) => s + v * vector[i], 0));

/** The agent of 913 weights, in the order of torch's modules, ready to act. */
export function agent(w) {
  const query = rows(w, 384, 32, 8), key = rows(w, 640, 32, 8);
  const Q = Array.from({ length: 16 }, (_, i) => Array.from({ length: 8 }, (_, j) => {
    const angle = i / 10000 ** ((2 * Math.floor(j / 2)) / 8);
    return j % 2 ? Math.cos(angle) : Math.sin(angle);
  }));
  return {
    input: rows(w, 0, 32, 2), hidden: rows(w, 64, 32, 8), bias: w.slice(320, 352).map((b, i) => b + w[352 + i]),
    query: Q.map((q) => times(query, q)).map((q) => key[0].map((_, i) => q.reduce((s, v, r) => s + v * key[r][i], 0))),
    head: w.slice(896, 912), shift: w[912],
  };
}
export const memory = (n) => ({ k: Array.from({ length: n }, () => Array(8).fill(0)), c: Array.from({ length: n }, () => Array(8).fill(0)), a: 0 });

/** One step: every sensor hears its reading and the last action; their sum is the code; the code acts. */
export function act(net, readings, before) {
  const k = [], c = [], sum = Array(16).fill(0);
  readings.forEach((x, i) => {
    const gates = net.bias.map((b, r) => {
      let z = b + net.input[r][0] * x + net.input[r][1] * before.a;
      for (let j = 0; j < 8; j++) z += net.hidden[r][j] * before.k[i][j];
      return z;
    });
    c.push(before.c[i].map((old, j) => sigmoid(gates[8 + j]) * old + sigmoid(gates[j]) * Math.tanh(gates[16 + j])));
    k.push(c[i].map((v, j) => sigmoid(gates[24 + j]) * Math.tanh(v)));
    net.query.forEach((q, m) => { sum[m] += Math.tanh(q.reduce((s, v, j) => s + v * k[i][j], 0)) * x; });
  });
  const code = sum.map(Math.tanh);
  const a = Math.tanh(net.shift + code.reduce((s, v, m) => s + v * net.head[m], 0));
  return { action: a, code, memory: { k, c, a } };
}

/** An ordinary network: 5 readings, two hidden layers of 64 ReLUs, tanh. */
export function ordinary(w, readings) {
  let at = 0, x = readings;
  for (const [inputs, outputs] of [[5, 64], [64, 64], [64, 1]]) {
    const y = w.slice(at + inputs * outputs, at + (inputs + 1) * outputs);
    for (let i = 0; i < inputs; i++) for (let j = 0; j < outputs; j++) y[j] += x[i] * w[at + i * outputs + j];
    at += (inputs + 1) * outputs;
    x = outputs > 1 ? y.map((v) => Math.max(0, v)) : y;
  }
  return Math.tanh(x[0]);
}

const HANG = [0.3, 0, Math.PI, 0], NAMES = ["position", "speed", "cosine", "sine", "turning"];
const EVERY = { never: 0, two: 200, one: 100, half: 50, quarter: 25 };
const EXTRA = { none: 0, copies: 5, noise: 3, hidden: 0 };
const world = () => ({ state: HANG, recent: [], tops: [], earned: 0, fallen: 0 });

export const demo = {
  caption: "Two carts with a pole each: an agent whose sensors share one network, and an ordinary network. Drag a pole to push it; the left and right arrow keys push both.",
  ratio: 1.2,
  data: "sensory_neuron.json",
  check(data) { if (data?.agent?.length !== 913 || data?.ordinary?.length !== 4609) throw new Error("sensory_neuron.json does not hold the weights"); },
  controls: {
    every: { label: "swap the wires", value: "never", options: { never: "when I press", two: "every 2 s", one: "every 1 s", half: "every ½ s", quarter: "every ¼ s" } },
    extra: { label: "sensors", value: "none", options: { none: "five", copies: "each twice", noise: "three of noise more", hidden: "one silent" } },
  },
  buttons: { swap: "Swap now", order: "Back in order", left: "Push left", right: "Push right" },

  begin(state, data) {
    const model = { data, net: agent(data.agent), t: 0, clock: 0, uniform: uniforms(3), normal: normals(4), carts: { agent: world(), ordinary: world() }, codes: [], hand: null };
    this.change(model, state, "extra");
    return model;
  },

  change(model, state, name) {
    if (name !== "extra") return;
    const n = 5 + EXTRA[state.extra];
    Object.assign(model, { order: Array.from({ length: n }, (_, i) => i), memory: memory(n) });
  },

  press(name, model) {
    const n = model.order.length;
    if (name === "order") model.order = model.order.map((_, i) => i);
    else if (name === "swap") this.shuffle(model);
    else for (const cart of Object.values(model.carts)) cart.state = cart.state.map((v, i) => v + (i === 3 ? (name === "left" ? -3 : 3) : 0));
    return {};
  },

  key: (event) => ({ ArrowLeft: "left", ArrowRight: "right" })[event.key],

  shuffle(model) {
    for (let i = model.order.length - 1; i > 0; i--) {
      const j = Math.floor(model.uniform() * (i + 1));
      [model.order[i], model.order[j]] = [model.order[j], model.order[i]];
    }
  },

  grabs: (model, state, [x, y]) => Object.entries(model.carts).some(([name, { state: s }]) => Math.abs(x - s[0]) < 1 && Math.abs(y - FLOOR[name]) < 0.9),

  touch(model, state, at, phase) {
    model.hand = phase === "up" ? null : at;
    return {};
  },

  advance(model, state, seconds) {
    for (model.clock += 100 * seconds; model.clock >= 1; model.clock--) this.step(model, state);
    return true;
  },

  step(model, state) {
    const { carts, order } = model, every = EVERY[state.every];
    if (every && ++model.t % every === 0) this.shuffle(model);
    const arrive = (cart, list) => {
      const x = observe(cart.state);
      if (state.extra === "hidden") x[0] = 0;
      const all = [...x, ...(state.extra === "copies" ? x : Array.from({ length: EXTRA[state.extra] }, () => 0.1 * model.normal()))];
      return list.map((i) => all[i]);
    };
    const move = act(model.net, arrive(carts.agent, order), model.memory);
    model.memory = move.memory;
    model.codes.push(move.code);
    if (model.codes.length > 300) model.codes.shift();
    const first = order.filter((i) => i < 5); // it has five inputs, whatever else there is
    const actions = { agent: move.action, ordinary: ordinary(model.data.ordinary, arrive(carts.ordinary, first)) };
    for (const [name, cart] of Object.entries(carts)) {
      if (cart.fallen && cart.fallen--) continue;
      const { state: next, reward, out } = tick(this.pushed(cart.state, model.hand, name), actions[name]);
      cart.state = next;
      cart.recent.push(reward);
      cart.tops.push(Math.cos(next[2]) > 0.8 ? 1 : 0);
      if (cart.tops.length > 300) cart.tops.shift();
      cart.earned += reward - (cart.recent.length > 1000 ? cart.recent.shift() : 0);
      if (out) { // off the track: it hangs again, after a second
        Object.assign(cart, { state: HANG, fallen: 100 });
        if (name === "agent") model.memory = memory(order.length);
      }
    }
  },

  /** A hand near a cart pulls its pole towards itself. */
  pushed([x, v, a, w], hand, name) {
    const floor = name === "agent" ? FLOOR.agent : FLOOR.ordinary;
    if (!hand || Math.abs(hand[1] - floor) > 0.9) return [x, v, a, w];
    return [x, v, a, w + 0.35 * Math.sin(Math.atan2(hand[0] - x, hand[1] - floor) - a)];
  },

  draw(pen, model) {
    this.wires(pen, model);
    pen.view([-2.7, 2.7], [0, 4], [0, 0, 1, 0.62]);
    for (const [name, colour, title] of [["agent", pen.method, "agent, in any order"], ["ordinary", pen.plain, "ordinary network"]]) {
      const { state, earned, fallen } = model.carts[name], y = FLOOR[name];
      pen.line([[-TRACK, y], [TRACK, y]], { colour: pen.data, width: 2 });
      pen.rect([state[0] - 0.2, state[0] + 0.2], [y - 0.09, y + 0.09], { fill: pen.ink });
      pen.line([[state[0], y], [state[0] + 0.8 * Math.sin(state[2]), y + 0.8 * Math.cos(state[2])]], { colour, width: 8, what: `the pole of the ${title}` });
      pen.text([-2.6, y - 0.5], fallen ? `${title}: off the track` : title, { colour, size: 15, bold: true });
      pen.text([2.6, y - 0.5], `${earned.toFixed(0)} of 1000 points in 10 s`, { size: 14, align: "right" });
    }
  },

  wires(pen, model) {
    const n = model.order.length;
    pen.view([-0.6, n - 0.4], [0, 1], [0, 0.63, 1, 0.83]);
    model.order.forEach((from, to) => {
      const noise = from >= 5 && model.order.length === 8;
      pen.line([[from, 0.82], [to, 0.36]], { colour: noise ? pen.data : pen.method, width: 2.5, what: "a wire" });
      pen.dot([to, 0.36], { r: 8, colour: pen.method });
    });
    for (let i = 0; i < n; i++) pen.text([i, 0.86], i >= 5 && n === 8 ? "noise" : n > 5 && pen.small ? NAMES[i % 5].slice(0, 3) : NAMES[i % 5], { size: 13, align: "center", colour: pen.muted });
    pen.text([(n - 1) / 2, -0.02], "the same network each; their sum, the code:", { size: 13, align: "center", base: "bottom", colour: pen.muted });
    pen.view([0, 300], [0, 1], [0.02, 0.86, 0.98, 1]);
    pen.strip(model.codes, -1, 1);
  },

  say(model, state) {
    const { agent: one, ordinary: two } = model.carts;
    const sorted = model.order.every((v, i) => v === i) ? "in order" : "swapped";
    return `Wires ${sorted}. Upright in the last 3 s: ${up(one)} of the time (agent), ${up(two)} (ordinary network).`;
  },
};
const FLOOR = { agent: 3, ordinary: 1 };
const up = ({ tops }) => `${Math.round((10 * tops.reduce((s, v) => s + v, 0)) / Math.max(1, tops.length)) * 10} %`;
