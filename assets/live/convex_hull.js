/* Chapter 39: is a new point inside the hull of the data? In the plane, and in more dimensions. */
import { normals } from "./random.js";

const dot = (a, b) => { let s = 0; for (let i = 0; i < a.length; i++) s += a[i] * b[i]; return s; };

/** A x = b by elimination with the largest pivot; A is changed. */
export function solve(A, b) {
  const n = b.length, x = [...b];
  for (let k = 0; k < n; k++) {
    let best = k;
    for (let i = k + 1; i < n; i++) if (Math.abs(A[i][k]) > Math.abs(A[best][k])) best = i;
    [A[k], A[best]] = [A[best], A[k]];
    [x[k], x[best]] = [x[best], x[k]];
    for (let i = k + 1; i < n; i++) {
      const part = A[i][k] / A[k][k];
      for (let j = k; j < n; j++) A[i][j] -= part * A[k][j];
      x[i] -= part * x[k];
    }
  }
  for (let k = n - 1; k >= 0; k--) {
    for (let j = k + 1; j < n; j++) x[k] -= A[k][j] * x[j];
    x[k] /= A[k][k];
  }
  return x;
}

/** Wolfe's method: the nearest point of the hull as seen from z (y), and its vertices and weights. */
export function nearest(points, z, tol = 1e-9) {
  const p = points.map((x) => x.map((v, i) => v - z[i])), length = p.map((v) => dot(v, v));
  let corral = [length.indexOf(Math.min(...length))], weights = [1], before = Infinity;
  for (;;) {
    const gram = corral.map((i) => corral.map((j) => dot(p[i], p[j]) + 1));
    const sums = solve(gram, corral.map(() => 1)), total = sums.reduce((s, v) => s + v, 0);
    const a = sums.map((v) => v / total);
    let step = Infinity, place = -1; // as far as the first weight that vanishes on the way to a
    a.forEach((v, i) => {
      const ratio = weights[i] / Math.max(weights[i] - v, 1e-300);
      if (v <= 1e-14 && ratio < step) { step = ratio; place = i; }
    });
    weights = weights.map((w, i) => w + Math.min(step, 1) * (a[i] - w));
    if (place >= 0) {
      corral = corral.filter((_, i) => i !== place);
      weights = weights.filter((_, i) => i !== place);
      continue;
    }
    const y = z.map((_, i) => corral.reduce((s, m, j) => s + weights[j] * p[m][i], 0));
    const size = Math.sqrt(dot(y, y)), along = p.map((v) => dot(v, y)), best = Math.min(...along);
    if (size <= tol || size >= before || best >= (1 - 1e-10) * size ** 2 || corral.length > z.length) {
      return { y, corral, weights, inside: size <= tol };
    }
    before = size;
    corral.push(along.indexOf(best));
    weights.push(0);
  }
}

/** The corners of the hull of points in the plane, in order. */
export function corners(points) {
  const sorted = [...points].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const chain = (list) => {
    const out = [];
    for (const p of list) {
      while (out.length > 1 && cross(out.at(-2), out.at(-1), p) <= 0) out.pop();
      out.push(p);
    }
    return out.slice(0, -1);
  };
  return [...chain(sorted), ...chain(sorted.reverse())];
}
const cross = (a, b, c) => (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);

export const cloud = (n, d, normal) => Array.from({ length: n }, () => Array.from({ length: d }, normal));

const MOST = 12;
export const demo = {
  caption: "Points, the hull around them, and one more point: inside, as a mixture of corners, or outside, behind a line. Below, the share of new Gaussian points that fall inside, by dimension. Drag points, or move the new one with the arrow keys.",
  ratio: 1.1,
  moves: ["x", "y"],
  data: "convex_hull.json",
  check(data) { if (!data?.inside?.["20"]?.every(Number.isFinite)) throw new Error("convex_hull.json has no curve for 20 points"); },
  controls: {
    d: { label: "dimensions d", min: 2, max: MOST, step: 1, value: 2, digits: 0 },
    n: { label: "points N", value: "20", options: { 10: "10", 20: "20", 50: "50", 200: "200" } },
    seed: { hidden: true, min: 1, max: 1e6, step: 1, value: 1 },
    x: { hidden: true, min: -3, max: 3, step: 0.1, value: 0.1 },
    y: { hidden: true, min: -2.4, max: 2.4, step: 0.1, value: 0.8 },
  },
  buttons: { fresh: "New points" },

  begin(state, data) {
    const normal = normals(state.seed), n = Number(state.n);
    const points = cloud(n, MOST, normal), rest = cloud(1, MOST, normal)[0];
    const counts = Array.from({ length: MOST + 1 }, () => [0, 0]);
    return { n: state.n, points, rest, counts, data, fresh: normals(state.seed + 1), clock: 0, dragged: -1 };
  },

  change(model, state, name) {
    if (name === "n" || name === "seed") Object.assign(model, this.begin(state, model.data));
  },

  press: (name, model, state) => ({ seed: (state.seed % 1e6) + 1 }),

  grabs: (model, state, [x, y]) => Math.hypot(state.x - x, state.y - y) < 0.4 || model.points.some((p) => Math.hypot(p[0] - x, p[1] - y) < 0.25),

  touch(model, state, at, phase) {
    if (phase === "up") { model.dragged = -1; return {}; }
    if (at[1] < -2.5) return {};
    const clip = (v, most) => Math.min(most, Math.max(-most, v));
    const [x, y] = [clip(at[0], 3), clip(at[1], 2.4)];
    if (phase === "down") {
      const far = model.points.map((p) => Math.hypot(p[0] - x, p[1] - y)), near = Math.min(...far);
      model.dragged = near < 0.18 && near < Math.hypot(state.x - x, state.y - y) ? far.indexOf(near) : -1;
    }
    if (model.dragged < 0) return { x, y };
    model.points[model.dragged].splice(0, 2, x, y);
    return {};
  },

  /** Fresh points against fresh clouds, in the dimension that is shown. */
  advance(model, state, seconds) {
    const count = model.counts[state.d];
    for (model.clock += 60 * seconds; model.clock >= 1 && count[1] < 400; model.clock--, count[1]++) {
      const [z, ...points] = cloud(Number(state.n) + 1, state.d, model.fresh);
      if (nearest(points, z).inside) count[0]++;
    }
    model.clock = Math.min(model.clock, 1);
    return count[1] < 400;
  },

  query: (model, state) => [state.x, state.y, ...model.rest.slice(2, state.d)],

  draw(pen, model, state) {
    const { data, counts } = model;
    pen.view([1.6, MOST + 0.4], [0, 1], [0.14, 0.8, 0.97, 0.95]);
    for (const part of [0, 0.1, 0.5, 1]) {
      pen.line([[1.6, part], [MOST + 0.4, part]], { colour: pen.data, width: 0.6, dash: part === 0.1 ? [4, 3] : [] });
      if (part === 0.1) continue;
      pen.text([1.5, part], `${100 * part} %`, { size: 12, align: "right", base: "middle", colour: pen.muted });
    }
    pen.line(data.inside[model.n].map((share, i) => [i + 2, share]), { colour: pen.ink, width: 2, what: "the exact curve" });
    counts.forEach(([inside, all], d) => {
      if (all < 10) return;
      const share = inside / all, error = Math.sqrt((share * (1 - share)) / all);
      pen.line([[d, share - error], [d, share + error]], { colour: pen.method, width: 3 });
      pen.diamond([d, share], { r: 6, colour: pen.method });
    });
    for (let d = 2; d <= MOST; d += 2) if (d !== state.d) pen.text([d, -0.12], String(d), { size: 12, align: "center", base: "top", colour: pen.muted });
    pen.text([state.d, -0.12], `d = ${state.d}`, { size: 13, align: "center", base: "top", bold: true });
    pen.text([MOST + 0.4, 1.1], "inside: exact (line), counted; dashed: 10 %", { size: 13, align: "right", colour: pen.muted });
    const far = Math.max(1, ...model.points.map((p) => Math.max(Math.abs(p[0]) / 3, Math.abs(p[1]) / 2.3)));
    pen.view([-3.2 * far, 3.2 * far], [-2.5 * far, 2.5 * far], [0, 0, 1, 0.74]);
    this.plane(pen, model, state);
  },

  plane(pen, model, state) {
    const points = model.points.map((p) => p.slice(0, state.d)), z = this.query(model, state);
    const { y, corral, weights, inside } = nearest(points, z), edge = corners(points);
    const flat = state.d === 2, shadow = z.slice(0, 2);
    Object.assign(model, { inside, corral, weights, away: Math.hypot(...y), edge });
    pen.inside(() => {
      pen.line([...edge, edge[0]], { colour: pen.data, fill: flat ? `${pen.data}30` : undefined, width: 2, dash: flat ? [] : [5, 5], what: "the hull" });
      if (inside) corral.forEach((m, i) => pen.line([shadow, points[m]], { colour: pen.other, width: 1 + 8 * weights[i] }));
      for (const p of points) pen.dot(p, { r: 5, colour: pen.data });
      if (!inside && flat) {
        const at = [shadow[0] + y[0] / 2, shadow[1] + y[1] / 2], turn = [-y[1] / model.away, y[0] / model.away];
        pen.line([-9, 9].map((s) => [at[0] + s * turn[0], at[1] + s * turn[1]]), { colour: pen.method, width: 2, what: "the separating line" });
      }
      pen.diamond(shadow, { r: 9, colour: inside ? pen.other : pen.method, what: "the new point" });
      if (!flat) pen.text([pen.x[0] * 0.96, pen.y[1] * 0.9], `the first two of ${state.d} coordinates; dashed: the hull of what is drawn`, { size: 13, colour: pen.muted, halo: pen.ground });
    });
  },

  say(model, state) {
    const share = model.counts[state.d], exact = model.data.inside[state.n][state.d - 2];
    const counted = share[1] < 10 ? "" : ` Tried with ${share[1]} new clouds of ${state.n}: the new point was inside ${share[0]} times (exact: ${(100 * exact).toFixed(1)} %).`;
    const parts = model.weights.map((w) => w.toFixed(2)).join(" + ");
    if (model.inside) return `Inside: the new point is a weighted average of ${model.corral.length} data points (weights ${parts}).${counted}`;
    const within = corners([...model.edge, [state.x, state.y]]).every((p) => p[0] !== state.x || p[1] !== state.y);
    const note = state.d > 2 && within ? ", though what is drawn of it lies inside" : "";
    return `Outside, ${model.away.toFixed(2)} away${note}.${counted}`;
  },
};
