/* Chapter 37: a learner in a noisy valley, and a learning rate that is learned from its steps. */
import { adam } from "./adam.js";
import { clip } from "./pen.js";
import { normals } from "./random.js";

export const valley = { h: [1, 0.05], sigma: 0.4, alpha: 0.3 };
const dot = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0);
export const objective = (x) => dot(valley.h, x.map((v) => v * v)) / 2;
const slope = (x, noise) => x.map((v, i) => valley.h[i] * v + noise[i]);

/** States x_0 ... x_K of K steps with the rate exp(w), and dx_K/dw; noise: one vector a step. */
export function unroll(x, w, noise, steps, first = 0) {
  const states = [x], rate = Math.exp(w);
  let dx = x.map(() => 0);
  for (let k = 0; k < steps; k++) {
    const s = slope(x, noise[first + k]);
    dx = dx.map((d, i) => d - rate * (s[i] + valley.h[i] * d));
    x = x.map((v, i) => v - rate * s[i]);
    states.push(x);
  }
  return { states, dx };
}

/** L - 1 steps more and one at the rate alpha on the objective: the states, the target last. */
export function target(x, w, noise, L, first) {
  const { states } = unroll(x, w, noise, L - 1, first);
  const s = slope(states.at(-1), noise[first + L - 1]);
  return [...states, states.at(-1).map((v, i) => v - valley.alpha * s[i])];
}

/** d/dw of f(x_K) where L is null, else of half the squared distance to the target, in a metric. */
export function metaGradient(x, w, noise, K, L, metric = valley.h.map(() => 1)) {
  const { states, dx } = unroll(x, w, noise, K), student = states.at(-1);
  if (L === null) return { g: dot(student.map((v, i) => valley.h[i] * v), dx), states, onward: [] };
  const onward = target(student, w, noise, L, K);
  return { g: dot(student.map((v, i) => metric[i] * (v - onward.at(-1)[i])), dx), states, onward };
}

const EPISODES = 60, RATE = 0.15;
const LEARNERS = [["K steps", "plain"], ["bootstrap", "method"], ["K + L steps", "other"]];
const rates = ({ K, L }) => [[K, null], [K, L], [K + L, null]];
const metrics = { distance: [1, 1], loss: valley.h };

export const demo = {
  caption: "A noisy valley, steep across and flat along. A learner takes K steps; where it is L steps later pulls its learning rate. Drag the learner, or move it with the arrow keys.",
  ratio: 1.05,
  moves: ["x", "y"],
  controls: {
    K: { label: "steps K", min: 1, max: 8, step: 1, value: 1, digits: 0 },
    L: { label: "steps ahead L", min: 1, max: 20, step: 1, value: 8, digits: 0 },
    metric: { label: "measure in", value: "distance", options: { distance: "distance", loss: "loss (steep counts more)" } },
    x: { hidden: true, min: -2.4, max: 2.4, step: 0.2, value: 0.2 },
    y: { hidden: true, min: -1.4, max: 5.4, step: 0.2, value: 4.6 },
  },

  begin: () => ({
    episode: 0, clock: 0, normal: normals(1),
    learners: LEARNERS.map(() => ({ theta: [Math.log(0.1)], m: [0], v: [0], t: 0, log: [Math.log(0.1)] })),
  }),

  grabs: (model, state, [x, y]) => Math.hypot((state.x - x) / 0.5, (state.y - y) / 0.8) < 1,

  touch(model, state, [x, y], phase) {
    return phase === "up" ? {} : { x: clip(x, this.controls.x), y: clip(y, this.controls.y) };
  },

  advance(model, state, seconds) {
    if (!model.shown) this.episode(model, state, false);
    for (model.clock += 8 * seconds; model.clock >= 1 && model.episode < EPISODES; model.clock--) this.episode(model, state, true);
    return model.episode < EPISODES;
  },

  /** All three learners meet the same noise. */
  episode(model, state, learn) {
    const { K, L } = state, from = [state.x, state.y];
    const noise = Array.from({ length: K + L }, () => [valley.sigma * model.normal(), valley.sigma * model.normal()]);
    rates(state).forEach(([k, l], i) => {
      const one = model.learners[i], result = metaGradient(from, one.theta[0], noise, k, l, metrics[state.metric]);
      if (i === 1) model.shown = result;
      if (!learn || one.lost) return;
      one.lost = !Number.isFinite(result.g); // steps that overshoot more and more: beyond all numbers
      if (one.lost) return;
      adam(one, [result.g], RATE, [0.9, 0.999]);
      one.log.push(one.theta[0]);
    });
    if (learn) model.episode++;
  },

  draw(pen, model) {
    const low = Math.log(0.006), high = Math.log(4);
    pen.view([0, EPISODES], [low, high], [0.1, 0.77, 0.97, 0.985]);
    for (const rate of [0.01, 0.1, 1]) {
      pen.line([[0, Math.log(rate)], [EPISODES, Math.log(rate)]], { colour: pen.data, width: 0.7, dash: [3, 4] });
      pen.text([-1, Math.log(rate)], String(rate), { size: 13, align: "right", base: "middle", colour: pen.muted });
    }
    pen.inside(() => model.learners.forEach(({ log }, i) => pen.line(log.map((w, t) => [t, w]), { colour: pen[LEARNERS[i][1]], width: 2.5, what: "a learned rate" })));
    pen.view([0, 1], [0, 1]);
    pen.legend([0.03, 0.265], LEARNERS.map(([name, colour]) => [name, pen[colour]]));
    pen.text([0.97, 0.255], "learned rate", { size: 13, align: "right", colour: pen.muted });
    pen.view([-2.6, 2.6], [-1.6, 5.6], [0, 0, 1, 0.69]);
    pen.map("valley", (x, y) => Math.sqrt(objective([x, y])), 0, 2);
    if (!model.shown) return;
    const { states, onward } = model.shown;
    if (![...states, ...onward].flat().every(Number.isFinite)) return;
    pen.inside(() => {
      pen.line(onward.slice(0, -1), { colour: "white", width: 2, dash: [4, 4], what: "the way on" });
      for (const at of onward.slice(0, -1)) pen.dot(at, { r: 2.5, colour: "white", rim: "white" });
      pen.line(onward.slice(-2), { colour: "white", width: 2 });
      pen.line(states, { colour: "white", width: 5, what: "the learner's steps" });
      pen.line(states, { colour: pen.method, width: 3 });
      for (const at of states) pen.dot(at, { r: 5, colour: pen.method, rim: "white" });
      pen.arrow(states.at(-1), onward.at(-1), { colour: "white", width: 6, head: 14, what: "the pull" });
      pen.arrow(states.at(-1), onward.at(-1), { colour: "#222", width: 2.5 });
      pen.diamond(onward.at(-1), { r: 10, colour: "white", what: "the target" });
      pen.diamond(onward.at(-1), { r: 7, colour: "#222" });
      pen.dot(states[0], { r: 8, colour: "white", ring: true });
    });
  },

  say(model, state) {
    const [short, boot, long] = model.learners.map((one) => Math.exp(one.theta[0]).toPrecision(2));
    const away = model.learners[1].lost || Number(boot) > 2 ? " Above 2 the steps overshoot: the bootstrap runs after its own mistakes." : "";
    return `Episode ${model.episode}. Learned rates: ${short} by looking ${state.K} ahead; ${boot} by the bootstrap, which backpropagates through ${state.K}, too; ${long} by backpropagating through ${state.K + state.L}.${away}`;
  },
};
