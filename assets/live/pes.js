/* Chapter 35: four gradients of a run of 100 steps, followed from any start, at equal inner steps. */
import { adam } from "./adam.js";
import { normals } from "./random.js";

const HORIZON = 100;

/** The function that is descended, at (x, y). */
export const f = (x, y) => Math.sqrt(x * x + 5) - Math.sqrt(5) + Math.sin(y) ** 2 * Math.exp(-5 * x * x) + Math.abs(y - 100) / 4;

/** Steps of gradient descent on f under the schedule theta, from state [x, y, t]: state and loss. */
export function unroll(theta, [x, y, t], steps) {
  const first = Math.exp(theta[0]), last = Math.exp(theta[1]);
  let loss = 0;
  for (let i = 0; i < steps; i++, t++) {
    const rate = first + ((last - first) / HORIZON) * t;
    const dent = Math.exp(-5 * x * x), wave = Math.sin(y);
    const across = x / Math.sqrt(x * x + 5) - 10 * x * wave * wave * dent;
    const along = 2 * wave * Math.cos(y) * dent + Math.sign(y - 100) / 4;
    x -= rate * across;
    y -= rate * along;
    loss += f(x, y);
  }
  return { state: [x, y, t], loss };
}

/** The derivative of an unroll's loss with its first state held fixed (forward mode). */
export function truncated(theta, [x, y, t], steps) {
  const rates = theta.map(Math.exp), g = [0, 0], dx = [0, 0], dy = [0, 0];
  for (let i = 0; i < steps; i++, t++) {
    const part = t / HORIZON, weigh = [1 - part, part], rate = rates[0] + (rates[1] - rates[0]) * part;
    const E = Math.exp(-5 * x * x), S = Math.sin(y) ** 2, s2 = Math.sin(2 * y), root = Math.sqrt(x * x + 5);
    const fx = x / root - 10 * x * S * E, fy = s2 * E + Math.sign(y - 100) / 4;
    const fxx = 5 / root ** 3 + (100 * x * x - 10) * S * E, fxy = -10 * x * s2 * E, fyy = 2 * Math.cos(2 * y) * E;
    for (const k of [0, 1]) {
      const a = weigh[k] * rates[k], u = dx[k], v = dy[k];
      dx[k] = u - rate * (fxx * u + fxy * v) - a * fx;
      dy[k] = v - rate * (fxy * u + fyy * v) - a * fy;
    }
    x -= rate * fx;
    y -= rate * fy;
    const E2 = Math.exp(-5 * x * x), S2 = Math.sin(y) ** 2;
    const hx = x / Math.sqrt(x * x + 5) - 10 * x * S2 * E2, hy = Math.sin(2 * y) * E2 + Math.sign(y - 100) / 4;
    for (const k of [0, 1]) g[k] += hx * dx[k] + hy * dy[k];
  }
  return { g, state: [x, y, t] };
}

/** sum_j w_j (plus_j - minus_j) / (N sigma^2), N = twice as many as there are pairs. */
export function estimate(plus, minus, weights, sigma) {
  const g = [0, 0];
  weights.forEach((w, j) => w.forEach((v, k) => { g[k] += (v * (plus[j] - minus[j])) / (2 * weights.length * sigma ** 2); }));
  return g;
}

/** One unroll of a population: pairs theta + eps and theta - eps, each from its own state. */
export function population(theta, eps, states, steps) {
  const side = (sign, s) => eps.map((e, j) => unroll(theta.map((v, k) => v + sign * e[k]), s[j], steps));
  const plus = side(1, states[0]), minus = side(-1, states[1]);
  return { losses: [plus.map((r) => r.loss), minus.map((r) => r.loss)], states: [plus.map((r) => r.state), minus.map((r) => r.state)] };
}

/** The estimators, each with what it carries from unroll to unroll. */
export const estimators = {
  pes(theta, carried, eps, steps, sigma, keep = 1) { // with less than all of the old noise it is another method
    carried.xi = carried.xi.map((x, j) => x.map((v, k) => keep * v + eps[j][k]));
    const { losses, states } = population(theta, eps, carried.states, steps);
    carried.states = states;
    return estimate(...losses, carried.xi, sigma);
  },
  es(theta, carried, eps, steps, sigma) {
    const { losses } = population(theta, eps, [eps, eps].map((e) => e.map(() => carried.state)), steps);
    carried.state = unroll(theta, carried.state, steps).state;
    return estimate(...losses, eps, sigma);
  },
  full(theta, carried, eps, steps, sigma) { // an answer only at the end of the run
    carried.eps ??= eps;
    const { losses, states } = population(theta, carried.eps, carried.states, steps);
    carried.states = states;
    carried.total = carried.total.map((t, s) => t.map((v, j) => v + losses[s][j]));
    return states[0][0][2] < HORIZON ? null : estimate(...carried.total, carried.eps, sigma);
  },
  backprop(theta, carried, eps, steps) {
    const { g, state } = truncated(theta, carried.state, steps);
    carried.state = state;
    return g;
  },
};

export const START = [1, 1, 0];
export const fresh = (pairs) => ({
  state: START, states: [0, 1].map(() => Array(pairs).fill(START)), total: [0, 1].map(() => Array(pairs).fill(0)),
  xi: Array.from({ length: pairs }, () => [0, 0]), eps: null,
});

const RATE = 0.02, STEPS = 6000; // of the outer updates; inner steps of each particle in all
const NAMES = { pes: "PES", full: "full ES", es: "truncated ES", backprop: "truncated backprop" };
const COLOURS = { pes: "method", full: "other", es: "tuned", backprop: "plain" };

export const demo = {
  caption: "The loss of a run as a map over the two ends of its learning-rate schedule, and four methods on their way down. Click, or use the arrow keys, to move their start.",
  ratio: 1.08,
  moves: ["a", "b"],
  controls: {
    method: { label: "show", value: "all", options: { all: "all four", pes: "PES", full: "full ES", es: "truncated ES", backprop: "truncated backprop" } },
    keep: { label: "PES: keep", min: 0, max: 1, step: 0.05, value: 1 },
    sigma: { label: "noise σ", min: 0.05, max: 1, step: 0.05, value: 0.3 },
    k: { label: "steps an unroll, K", value: "10", options: { 1: "1", 5: "5", 10: "10", 25: "25", 100: "100" } },
    n: { label: "particles N", min: 4, max: 200, step: 4, value: 100, digits: 0 },
    a: { hidden: true, min: -4.8, max: 4.8, step: 0.2, value: -4 },
    b: { hidden: true, min: -4.8, max: 4.8, step: 0.2, value: -4 },
  },

  begin(state) {
    const runs = {};
    for (const name of Object.keys(NAMES)) {
      const theta = [state.a, state.b];
      runs[name] = { theta, m: [0, 0], v: [0, 0], t: 0, path: [theta], carried: fresh(state.n / 2) };
    }
    return { runs, unrolls: 0, clock: 0, normal: normals(1), noise: [], inner: 0 };
  },

  change(model, state, name) { if (name !== "method") Object.assign(model, this.begin(state)); },

  touch(model, state, [a, b], phase) {
    if (phase === "move" || Math.abs(a) > 4.8 || Math.abs(b) > 4.8) return {};
    return phase === "down" ? { a, b } : {};
  },

  advance(model, state, seconds) {
    const steps = Number(state.k);
    model.clock += (1500 * seconds) / steps;
    for (let n = 0; model.clock >= 1 && model.inner < STEPS && n < 40; n++, model.clock--) this.unroll(model, state, steps);
    model.clock = Math.min(model.clock, 1);
    return model.inner < STEPS;
  },

  unroll(model, state, steps) {
    if (model.inner % HORIZON === 0) {
      for (const run of Object.values(model.runs)) run.carried = fresh(state.n / 2);
      model.noise = [model.runs.pes.carried.xi];
    }
    for (const [name, run] of Object.entries(model.runs)) {
      const eps = run.carried.xi.map(() => [state.sigma * model.normal(), state.sigma * model.normal()]);
      const g = run.lost ? null : estimators[name](run.theta, run.carried, eps, steps, state.sigma, state.keep);
      if (!g) continue;
      run.lost = !g.every(Number.isFinite); // it exploded beyond all numbers: this one stays where it is
      if (!run.lost) adam(run, g, RATE);
      run.path.push(run.theta);
    }
    model.noise.push(model.runs.pes.carried.xi);
    model.inner += steps;
    model.unrolls++;
  },

  draw(pen, model, state) {
    const reach = Math.max(0.5, ...model.noise.flatMap((xi) => xi.slice(0, 6).map((v) => Math.abs(v[0]))));
    pen.view([0, HORIZON], [-reach, reach], [0.03, 0.87, 0.97, 0.985]);
    pen.line([[0, 0], [HORIZON, 0]], { colour: pen.data, width: 1 });
    for (let j = 0; j < Math.min(6, state.n / 2); j++) {
      pen.line(model.noise.map((xi, u) => [u * Number(state.k), xi[j][0]]), { colour: pen.method, width: 1.5, what: "the noise" });
    }
    pen.text([0, reach * 1.3], "PES: noise added up by six particles since the run began", { size: 13, colour: pen.muted });
    pen.view([0, 1], [0, 1]);
    pen.legend([0.03, 0.2], Object.keys(NAMES).map((name) => [name === "backprop" ? name : NAMES[name], pen[COLOURS[name]]]));
    pen.view([-5, 5], [-5, 5], [0, 0, 1, 0.77]);
    pen.map("toy", (a, b) => unroll([a, b], START, HORIZON).loss, 540, 2500, 110);
    pen.inside(() => {
      for (const [name, run] of Object.entries(model.runs)) {
        if (state.method !== "all" && state.method !== name) continue;
        pen.line(run.path, { colour: "white", width: 4, what: `the path of ${NAMES[name]}` });
        pen.line(run.path, { colour: pen[COLOURS[name]], width: 2.5 });
        pen.dot(run.theta, { r: 6, colour: pen[COLOURS[name]], rim: "white" });
      }
      pen.dot([state.a, state.b], { r: 6, colour: "white", ring: true });
    });
    pen.text([-4.8, -4.75], "θ₀, the first rate →", { colour: "#222", size: 13 });
    pen.text([-4.8, 4.45], "↑ θ₁, the last rate", { colour: "#222", size: 13 });
  },

  say(model) {
    const said = Object.entries(model.runs).map(([name, run]) => `${NAMES[name]} ${unroll(run.theta, START, HORIZON).loss.toFixed(0)}${run.lost ? " (its gradient overflowed)" : ""}`);
    return `After ${model.inner} inner steps a particle, loss of the run: ${said.join(", ")}.`;
  },
};
