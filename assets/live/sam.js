/* Chapter 36: SGD and SAM on a surface of two weights, from any start. */
import { clip, finite } from "./pen.js";
import { normals } from "./random.js";

/** Losses of two weights, each with its slope. */
export const surfaces = {
  wells: {
    loss: (x, y) => 1.1 - Math.exp(-((x + 0.9) ** 2 + y ** 2) / 0.0968)
      - Math.exp(-((x - 0.9) ** 2 + y ** 2) / 1.125) + 0.04 * (x ** 2 + y ** 2),
    slope(x, y) {
      const narrow = Math.exp(-((x + 0.9) ** 2 + y ** 2) / 0.0968) / 0.0968;
      const wide = Math.exp(-((x - 0.9) ** 2 + y ** 2) / 1.125) / 1.125;
      return [2 * (x + 0.9) * narrow + 2 * (x - 0.9) * wide + 0.08 * x, 2 * y * (narrow + wide + 0.04)];
    },
    range: [0, 1.25],
  },
  valley: { // its floor is at height 0 all along; it is steep on the left and widens to the right
    loss(x, y) { const q = 3 * Math.exp(-1.5 * x) * (y - 0.4 * Math.sin(2 * x)) ** 2; return q / (1 + q); },
    slope(x, y) {
      const c = 3 * Math.exp(-1.5 * x), off = y - 0.4 * Math.sin(2 * x), q = c * off ** 2;
      const outer = 1 / (1 + q) ** 2;
      return [outer * (-1.5 * q - 1.6 * c * off * Math.cos(2 * x)), outer * 2 * c * off];
    },
    range: [0, 1],
  },
};

/** The vector of p-norm rho with the largest inner product with g; p is 1, 2 or Infinity. */
export function ascend(g, rho, p = 2) {
  const largest = Math.max(...g.map(Math.abs));
  if (largest === 0) return g.map(() => 0);
  if (p === Infinity) return g.map((v) => rho * Math.sign(v));
  if (p === 1) {
    const tops = g.filter((v) => Math.abs(v) === largest).length;
    return g.map((v) => (Math.abs(v) === largest ? (rho * Math.sign(v)) / tops : 0));
  }
  const length = Math.hypot(...g);
  return g.map((v) => (rho * v) / length);
}

/** One step with momentum; noise z is part of both gradients. Returns weights, velocity, climb. */
export function step(surface, w, v, { rho, p = 2, eta, momentum, z = [0, 0] }) {
  const g = surface.slope(...w).map((s, i) => s + z[i]);
  const e = ascend(g, rho, p);
  const above = surface.slope(w[0] + e[0], w[1] + e[1]);
  v = v.map((old, i) => momentum * old + above[i] + z[i]);
  return { w: w.map((old, i) => old - eta * v[i]), v, e };
}

const STEPS = 240, RUNS = 64, ETA = 0.05, MOMENTUM = 0.9;
const orders = { 1: 1, 2: 2, inf: Infinity };
const swarm = (at) => Array.from({ length: RUNS }, () => ({ w: [...at], v: [0, 0], e: [0, 0] }));

export const demo = {
  caption: "Sixty-four runs of SGD and of SAM on a loss of two weights. Click, or use the arrow keys, to move their start.",
  ratio: 0.66,
  moves: ["x", "y"],
  controls: {
    surface: { label: "surface", value: "wells", options: { wells: "two wells", valley: "a valley that widens" } },
    rho: { label: "ball ρ", min: 0, max: 1, step: 0.02, value: 0.2 },
    noise: { label: "noise", min: 0, max: 2, step: 0.1, value: 0.5, digits: 1 },
    p: { label: "ball of the norm", value: "2", options: { 1: "1", 2: "2", inf: "∞" } },
    x: { hidden: true, min: -1.7, max: 1.9, step: 0.05, value: -0.7 },
    y: { hidden: true, min: -1.2, max: 1.2, step: 0.05, value: 0.35 },
  },
  buttons: { crest: "Where SAM hangs on a crest" },

  begin(state) {
    const at = [state.x, state.y];
    return { t: 0, clock: 0, sgd: swarm(at), sam: swarm(at), path: { sgd: [at], sam: [at] }, normal: normals(1) };
  },

  press: () => ({ surface: "wells", rho: 0.4, noise: 0, p: "2", x: -0.5, y: 0.1 }),

  touch(model, state, [x, y], phase) {
    if (phase === "up") return {};
    return { x: clip(x, this.controls.x), y: clip(y, this.controls.y) };
  },

  advance(model, state, seconds) {
    model.clock += 60 * seconds;
    for (; model.clock >= 1 && model.t < STEPS; model.clock--, model.t++) {
      const eta = (ETA * (1 + Math.cos((Math.PI * model.t) / STEPS))) / 2;
      for (let i = 0; i < RUNS; i++) {
        const z = [state.noise * model.normal(), state.noise * model.normal()];
        for (const [name, rho] of [["sgd", 0], ["sam", state.rho]]) {
          const run = model[name][i];
          Object.assign(run, step(surfaces[state.surface], run.w, run.v, { rho, p: orders[state.p], eta, momentum: MOMENTUM, z }));
          if (i === 0) model.path[name].push(run.w);
        }
      }
    }
    return model.t < STEPS;
  },

  draw(pen, model, state) {
    const surface = surfaces[state.surface];
    pen.view([-1.7, 1.9], [-1.2, 1.2]);
    pen.map(state.surface, surface.loss, ...surface.range);
    pen.inside(() => {
      const at = [state.x, state.y], first = model.sam[0];
      for (const [name, colour] of [["sgd", pen.plain], ["sam", pen.method]]) {
        pen.line(model.path[name], { colour: "white", width: 3.5, what: `the path of ${name}` });
        pen.line(model.path[name], { colour, width: 2 });
        for (const { w } of model[name]) {
          if (name === "sgd") { pen.dot(w, { r: 6, colour: "white", rim: "white", what: "a run of SGD" }); pen.dot(w, { r: 4, colour, rim: colour }); }
          else pen.diamond(w, { r: 5, colour, what: "a run of SAM" });
        }
      }
      pen.arrow(first.w, [first.w[0] + first.e[0], first.w[1] + first.e[1]], { colour: "white", width: 2.5, what: "the climb" });
      pen.line(ball(at, state.rho, state.p), { colour: "white", width: 1.5, dash: [4, 4] });
      pen.dot(at, { r: 6, colour: "white", ring: true });
    });
  },

  say(model, state) {
    const right = (runs) => runs.filter(({ w }) => finite(w, "a run")[0] > 0.2).length;
    const where = state.surface === "wells" ? "in the wide well" : "in the wide part";
    const crest = state.surface === "wells" ? model.sam.filter(({ w }) => w[0] > -0.65 && w[0] < -0.1).length : 0;
    const hang = model.t === STEPS && crest ? ` ${crest} SAM runs hang on the crest.` : "";
    return `${model.t < STEPS ? "Running" : "At the end"}, ${where}: SGD (blue) ${right(model.sgd)} of ${RUNS}, SAM (orange) ${right(model.sam)} of ${RUNS}.${hang} White arrow: one run's look uphill.`;
  },
};

/** The border of the ball in which SAM climbs. */
function ball([x, y], rho, p) {
  return Array.from({ length: 65 }, (_, i) => {
    const [a, b] = [Math.cos((i * Math.PI) / 32), Math.sin((i * Math.PI) / 32)];
    const norm = { 1: Math.abs(a) + Math.abs(b), 2: 1, inf: Math.max(Math.abs(a), Math.abs(b)) }[p];
    return [x + (rho * a) / norm, y + (rho * b) / norm];
  });
}
