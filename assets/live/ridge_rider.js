/* Chapter 40: rides along the ridges of a saddle, and gradient descent with noise beside them. */
import { normals } from "./random.js";

/** Losses of two parameters with slope and Hessian. */
export const landscapes = {
  bent: { // two shallow minima near by, two deep ones down a bent valley
    loss: (x, y) => (bend(x, y) ** 2 - 1) ** 2 + 2.4 * (y * y / 9 - 1) ** 2 + 0.6 * bend(x, y) ** 2 * y * y - 3.4,
    slope(x, y) {
      const u = bend(x, y), lu = 4 * u * (u * u - 1) + 1.2 * u * y * y;
      return [lu, (9.6 / 9) * y * (y * y / 9 - 1) + 1.2 * u * u * y - 0.4 * y * lu];
    },
    hessian(x, y) {
      const u = bend(x, y), lu = 4 * u * (u * u - 1) + 1.2 * u * y * y;
      const uu = 12 * u * u - 4 + 1.2 * y * y, uv = 2.4 * u * y, vv = (9.6 / 9) * (y * y / 3 - 1) + 1.2 * u * u;
      const d = -0.4 * y; // du/dy
      return [uu, uv + d * uu, vv + 2 * d * uv + d * d * uu - 0.4 * lu];
    },
    x: [-2.6, 3.8], y: [-3.9, 3.9], range: [-2.4, 5], start: [0, 0],
  },
  bowls: { // four minima, four saddles between them, a hill in the middle
    loss: (x, y) => (x * x - 1) ** 2 + (y * y - 1) ** 2 + 0.4 * x * y + 0.2 * x,
    slope: (x, y) => [4 * x * (x * x - 1) + 0.4 * y + 0.2, 4 * y * (y * y - 1) + 0.4 * x],
    hessian: (x, y) => [12 * x * x - 4, 0.4, 12 * y * y - 4],
    x: [-1.8, 1.8], y: [-1.6, 1.6], range: [-0.7, 2.6], start: [0, 0],
  },
};
const bend = (x, y) => x - 0.2 * y * y;

const SAME = 1e-3, LEAST = 0.9, SHORTEST = 1e-3, FLAT = 1e-3;
const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
const along = (p, s, e) => [p[0] + s * e[0], p[1] + s * e[1]];

/** Eigenvalues, ascending, and unit eigenvectors of [[a, b], [b, c]]. */
export function eigenpairs([a, b, c]) {
  const mean = (a + c) / 2, half = Math.hypot((a - c) / 2, b);
  const angle = 0.5 * Math.atan2(2 * b, a - c);
  return { values: [mean - half, mean + half], vectors: [[-Math.sin(angle), Math.cos(angle)], [Math.cos(angle), Math.sin(angle)]] };
}

/** Turn e to the eigenspace that holds most of it; dimension: of the space that it comes from. */
export function turn(e, { values, vectors }, dimension) {
  const shares = vectors.map((v) => dot(v, e));
  const size = values.map(Math.abs), rounding = 10 * Number.EPSILON * Math.max(...size);
  const space = [0, values[1] - values[0] > Math.max(SAME * Math.max(...size), rounding) ? 1 : 0];
  const weights = [0, 0];
  shares.forEach((s, i) => { weights[space[i]] += s * s; });
  const best = weights[1] > weights[0] ? 1 : 0, inside = space.map((s) => (s === best ? 1 : 0));
  let turned = [0, 0], value = 0;
  shares.forEach((s, i) => {
    turned = along(turned, s * inside[i], vectors[i]);
    value += (values[i] * s * s * inside[i]) / weights[best];
  });
  const nearest = shares.map((s) => s * s).sort((p, q) => q - p);
  const pieces = dimension > 1 ? nearest[0] + nearest[1] : nearest[0];
  const length = Math.hypot(...turned);
  return { e: turned.map((v) => v / length), value, overlap: Math.sqrt(Math.max(pieces, weights[best])), dimension: inside[0] + inside[1] };
}

/** A ride from theta along e, one round at a time: yields {theta, e, value, good}; returns why it ended. */
export function* ride({ loss, hessian }, theta, e, step, most = 1000) {
  let at = turn(e, eigenpairs(hessian(...theta)), 2), alpha = step, steps = 0, ended = "riding";
  const limit = -FLAT * Math.abs(at.value);
  yield { theta, e: at.e, value: at.value, good: true };
  if (at.value >= limit) return "curvature";
  while (ended === "riding") {
    const next = along(theta, alpha, at.e), height = loss(...next);
    const there = turn(at.e, eigenpairs(hessian(...next)), at.dimension);
    const finite = [height, ...there.e].every(Number.isFinite), good = finite && there.overlap >= LEAST;
    if (good) { theta = next; at = there; steps++; }
    alpha = good ? Math.min(1.5 * alpha, step) : alpha / 2;
    if (!good && alpha < SHORTEST * step) ended = "overlap";
    if (!finite) ended = "loss";
    if (good && steps >= most) ended = "steps";
    if (good && there.value > limit) ended = "curvature";
    yield { theta, e: at.e, value: at.value, good };
  }
  return ended;
}

/** Directions of negative curvature, lowest first, the larger component positive. */
export function ridges({ hessian }, theta) {
  const { values, vectors } = eigenpairs(hessian(...theta));
  const most = Math.max(...values.map(Math.abs));
  return vectors.filter((_, i) => values[i] < -1e-6 * most).map((v) => {
    const large = Math.abs(v[0]) >= (1 - 1e-4) * Math.abs(v[1]) ? v[0] : v[1];
    return v.map((x) => x * Math.sign(large));
  });
}

export const descend = ({ slope }, theta, steps, rate) => {
  for (let i = 0; i < steps; i++) theta = along(theta, -rate, slope(...theta));
  return theta;
};

/** The critical point that Newton's method finds from here, or null. */
export function critical({ slope, hessian }, p) {
  for (let i = 0; i < 50; i++) {
    const [a, b, c] = hessian(...p), g = slope(...p), det = a * c - b * b;
    if (Math.hypot(...g) < 1e-12) return p;
    p = [p[0] - (c * g[0] - b * g[1]) / det, p[1] - (a * g[1] - b * g[0]) / det];
  }
  return Math.hypot(...slope(...p)) < 1e-9 ? p : null;
}

const RUNS = 24;
export const demo = {
  caption: "A loss of two parameters. Rides leave a saddle along its ridges; runs of gradient descent leave it with noise. Click near another saddle, or move with the arrow keys.",
  ratio: 0.78,
  moves: ["x", "y"],
  controls: {
    landscape: { label: "landscape", value: "bent", options: { bent: "a bent valley", bowls: "four bowls" } },
    ridge: { label: "ride", value: "all", options: { all: "every ridge", first: "the steepest bend", second: "the gentler one" } },
    step: { label: "step α", min: 0.02, max: 0.6, step: 0.02, value: 0.1 },
    x: { hidden: true, min: -3, max: 4, step: 0.1, value: 0 },
    y: { hidden: true, min: -4, max: 4, step: 0.1, value: 0 },
  },

  begin(state) {
    const land = landscapes[state.landscape];
    const found = critical(land, [state.x, state.y]), inside = found && found.every((v, i) => v >= land[i ? "y" : "x"][0] && v <= land[i ? "y" : "x"][1]);
    const rideable = inside && ridges(land, found).length > 0;
    const saddle = rideable ? found : land.start, normal = normals(1);
    const ways = ridges(land, saddle).filter((_, i) => state.ridge === "all" || state.ridge === ["first", "second"][i]);
    const rides = ways.flatMap((e) => [1, -1].map((sign) => ({ run: ride(land, saddle, e.map((v) => sign * v), state.step, 400), path: [saddle], tail: [] })));
    const noisy = Array.from({ length: RUNS }, () => ({ path: [along(saddle, 0.1, [normal(), normal()])] }));
    return { saddle, rideable, rides, noisy, rounds: 0, clock: 0 };
  },

  touch: (model, state, [x, y], phase) => (phase === "down" && Math.abs(x) < 4 && Math.abs(y) < 4 ? { x, y } : {}),

  advance(model, state, seconds) {
    const land = landscapes[state.landscape];
    for (model.clock += 30 * seconds; model.clock >= 1 && model.rounds < 300; model.clock--, model.rounds++) {
      for (const one of model.rides) {
        if (!one.done) {
          const { value, done } = one.run.next();
          one.done = done;
          if (done) one.why = value;
          else { one.now = value; if (value.good) one.path.push(value.theta); }
        } else { // downhill from where the ride ended
          one.tail.push(descend(land, one.tail.at(-1) ?? one.path.at(-1), 4, 0.02));
        }
      }
      for (const { path } of model.noisy) path.push(descend(land, path.at(-1), 4, 0.02));
      const still = (list) => list.length > 2 && Math.hypot(list.at(-1)[0] - list.at(-2)[0], list.at(-1)[1] - list.at(-2)[1]) < 1e-4;
      if (model.rides.every(({ tail }) => still(tail)) && model.noisy.every(({ path }) => still(path))) model.rounds = 300;
    }
    return model.rounds < 300;
  },

  draw(pen, model, state) {
    const land = landscapes[state.landscape];
    pen.view(land.x, land.y);
    pen.map(state.landscape, land.loss, ...land.range);
    pen.inside(() => {
      for (const { path } of model.noisy) {
        pen.line(path, { colour: "white", width: 4, what: "a path of gradient descent" });
        pen.line(path, { colour: pen.plain, width: 2 });
        pen.dot(path.at(-1), { r: 4, colour: pen.plain, rim: "white" });
      }
      for (const { path, tail, now, done } of model.rides) {
        pen.line(path, { colour: "white", width: 4.5, what: "a ride" });
        pen.line(path, { colour: pen.method, width: 3 });
        pen.line([path.at(-1), ...tail], { colour: "white", width: 3.5, what: "the descent after a ride" });
        pen.line([path.at(-1), ...tail], { colour: pen.method, width: 2, dash: [2, 5] });
        pen.diamond(tail.at(-1) ?? path.at(-1), { r: 7, colour: pen.method });
        if (now && !done) pen.arrow(now.theta, along(now.theta, 0.09 * (land.x[1] - land.x[0]), now.e), { colour: "white", width: 2.5, what: "the ridge" });
      }
      pen.dot(model.saddle, { r: 6, colour: "white", ring: true });
    });
  },

  say(model, state) {
    const land = landscapes[state.landscape];
    if (state.ridge === "second" && !model.rides.length) return "This saddle has one ridge only: choose another, or ride the steepest.";
    const lowest = (points) => Math.min(...points.map((p) => land.loss(...p))).toFixed(2).replace("-", "−");
    const kinds = (points) => new Set(points.map((p) => p.map((v) => Math.round(2 * v)).join())).size;
    const ends = model.rides.map((r) => r.tail.at(-1) ?? r.path.at(-1)), others = model.noisy.map(({ path }) => path.at(-1));
    const where = model.rideable ? "" : "No saddle there; from the middle. ";
    if (model.rounds < 300) return `${where}Riding (orange, the arrow is the ridge) and descending with noise (blue).`;
    return `${where}Rides, then descent (dotted), end in ${kinds(ends)} places, the lowest at ${lowest(ends)}; ${RUNS} noisy descents in ${kinds(others)}, the lowest at ${lowest(others)}.`;
  },
};
