/* Chapter 38: a small interpretable N-BEATS forecasts a real series whose points the reader moves. */

/** Powers of time and waves, as the blocks combine them: rows of curves. */
export const trendBasis = (points, length) => [0, 1, 2].map((i) => Array.from({ length: points }, (_, j) => (j / length) ** i));
export function seasonalBasis(points, horizon) {
  const waves = Array.from({ length: Math.ceil(horizon / 2) }, (_, k) => k);
  const rows = (f) => waves.map((k) => Array.from({ length: points }, (_, j) => f((2 * Math.PI * ((k * j) % horizon)) / horizon)));
  return [...rows(Math.cos), ...rows(Math.sin)];
}

/** The weights, in the order in which the package keeps them. */
export function network({ weights, lookback, horizon, stacks, layers, blocks }) {
  let at = 0;
  const take = (n) => weights.slice(at, (at += n));
  return {
    lookback, horizon, blocks,
    stacks: stacks.map(([name, width]) => {
      const forecast = name === "trend" ? trendBasis(horizon, horizon) : seasonalBasis(horizon, horizon);
      const backcast = name === "trend" ? trendBasis(lookback, lookback) : seasonalBasis(lookback, horizon);
      const sizes = [lookback, ...Array(layers).fill(width), forecast.length + backcast.length];
      const affine = sizes.slice(1).map((outputs, i) => ({ W: Array.from({ length: sizes[i] }, () => take(outputs)), b: take(outputs) }));
      return { name, affine, forecast, backcast };
    }),
  };
}

const combine = (theta, curves) => curves[0].map((_, j) => theta.reduce((s, v, i) => s + v * curves[i][j], 0));

/** A window, oldest first, in parts: level + the stacks' forecasts, and what each took of the window. */
export function decompose(net, window) {
  let x = [...window].reverse();
  const parts = net.stacks.map(({ name, affine, forecast, backcast }) => {
    const part = { name, forecast: Array(net.horizon).fill(0), backcast: Array(net.lookback).fill(0) };
    for (let n = 0; n < net.blocks; n++) {
      let h = x;
      affine.forEach(({ W, b }, layer) => {
        const y = [...b];
        h.forEach((v, i) => { for (let j = 0; j < y.length; j++) y[j] += v * W[i][j]; });
        h = layer < affine.length - 1 ? y.map((v) => Math.max(0, v)) : y;
      });
      const ahead = combine(h.slice(0, forecast.length), forecast), back = combine(h.slice(forecast.length), backcast);
      part.forecast = part.forecast.map((v, j) => v + ahead[j]);
      part.backcast = part.backcast.map((v, j) => v + back[j]);
      x = x.map((v, j) => v - back[j]);
    }
    part.backcast.reverse();
    return part;
  });
  const level = window.at(-1), forecast = parts[0].forecast.map((_, j) => parts.reduce((s, p) => s + p.forecast[j], level));
  return { level, forecast, parts };
}

const NAMES = { co2: "carbon dioxide, ppm", sea: "sea temperature, °C" };
const spread = (list) => [Math.min(...list), Math.max(...list)];

export const demo = {
  caption: "Four years of a monthly series and its forecast for two more, with the forecast's two parts below. Drag a point; or choose one with the left and right arrow keys and move it with up and down.",
  ratio: 0.95,
  data: "nbeats.json",
  check(data) {
    if (!data?.weights?.every(Number.isFinite) || !data.series?.co2?.every(Number.isFinite)) throw new Error("nbeats.json does not hold the weights and series");
  },
  controls: {
    series: { label: "series", value: "co2", options: NAMES },
    point: { hidden: true, min: 0, max: 47, step: 1, value: 47, digits: 0 },
  },
  buttons: { earlier: "Earlier point", later: "Later point", up: "Raise it", down: "Lower it" },
  key: (event) => ({ ArrowLeft: "earlier", ArrowRight: "later", ArrowUp: "up", ArrowDown: "down" })[event.key],

  begin(state, data) {
    const net = network(data), all = data.series[state.series];
    const before = all.slice(0, net.lookback), model = { data, net, before, window: [...before], truth: all.slice(net.lookback), moved: false };
    return Object.assign(model, { first: decompose(net, before), now: decompose(net, before), range: this.range(all) });
  },

  change(model, state, name) { if (name === "series") Object.assign(model, this.begin(state, model.data)); },

  range(values) {
    const [low, high] = spread(values), room = 0.45 * (high - low);
    return [low - room, high + room];
  },

  press(name, model, state) {
    const step = { earlier: -1, later: 1 }[name];
    if (step) return { point: Math.min(47, Math.max(0, state.point + step)) };
    this.move(model, state.point, model.window[state.point] + (name === "up" ? 1 : -1) * (model.range[1] - model.range[0]) / 30);
    return {};
  },

  move(model, point, value) {
    model.window[point] = Math.min(model.range[1], Math.max(model.range[0], value));
    model.now = decompose(model.net, model.window);
    model.moved = true;
  },

  grabs: ({ window, range }, state, [x, y]) => x > -1 && x < 47.6 && Math.abs(y - window[Math.min(47, Math.max(0, Math.round(x)))]) < 0.15 * (range[1] - range[0]),

  touch(model, state, [x, y], phase) {
    const point = Math.round(x);
    if (phase === "up" || (phase === "down" && (point < 0 || point > 47 || y < model.range[0]))) { model.held = -1; return {}; }
    if (phase === "down") model.held = point;
    if (model.held < 0) return {};
    this.move(model, model.held, y);
    return { point: model.held };
  },

  still: true,
  advance: () => false,

  draw(pen, model, state) {
    const { now, first, window, before, truth, net } = model, L = net.lookback;
    const ahead = (values) => values.map((v, i) => [L + i, v]);
    const wide = [-1, L + net.horizon];
    const [low, high] = spread([0, ...now.parts, ...first.parts].flatMap((part) => part.forecast ?? part)), room = 0.2 * (high - low);
    now.parts.forEach(({ name, forecast }, i) => { // both in one scale: they and the last point add up to the forecast
      pen.view([-1, net.horizon + 0.5], [low - room, high + room], [0.02 + 0.5 * i, 0.72, 0.48 + 0.5 * i, 0.98]);
      pen.line([[0, 0], [net.horizon, 0]], { colour: pen.data, width: 1, dash: [3, 3] });
      pen.line(first.parts[i].forecast.map((v, t) => [t + 1, v]), { colour: pen.data, width: 1.5, dash: [4, 3], what: `the ${name}` });
      pen.line(forecast.map((v, t) => [t + 1, v]), { colour: i ? pen.other : pen.plain, width: 3, what: `the ${name}` });
      pen.text([-0.8, high + 1.3 * room], i ? "season" : pen.small ? "trend" : "trend, from the last point on", { size: 14, bold: true, colour: i ? pen.other : pen.plain });
    });
    pen.view(wide, model.range, [0.02, 0.02, 0.98, 0.64]);
    pen.line([[L - 0.5, model.range[0]], [L - 0.5, model.range[1]]], { colour: pen.data, width: 1, dash: [3, 3] });
    if (model.moved) pen.line(before.map((v, t) => [t, v]), { colour: pen.data, width: 1, dash: [4, 3] });
    pen.line(ahead(first.forecast), { colour: pen.method, width: 1.5, dash: [4, 4], what: "the first forecast" });
    pen.line(ahead(truth), { colour: pen.ink, width: 1.5, what: "what came" });
    pen.line(window.map((v, t) => [t, v]), { colour: pen.ink, width: 1.5, what: "the series" });
    window.forEach((v, t) => pen.dot([t, v], { r: t === state.point ? 7 : 4, colour: t === state.point ? pen.method : pen.ink }));
    pen.line([[L - 1, window.at(-1)], ...ahead(now.forecast)], { colour: pen.method, width: 3.5, what: "the forecast" });
    for (const part of [0.2, 0.8]) { // two numbers on the axis
      const value = Math.round(model.range[0] + part * (model.range[1] - model.range[0]));
      pen.text([-0.8, value], String(value), { size: 12, base: "middle", colour: pen.muted, halo: pen.ground });
    }
    const top = model.range[1] - 0.05 * (model.range[1] - model.range[0]);
    pen.text([-0.8, top], NAMES[state.series], { size: 14, bold: true });
    pen.text([L + net.horizon - 0.2, top], "forecast", { size: 14, bold: true, colour: pen.method, align: "right" });
  },

  say(model, state) {
    const error = model.now.forecast.reduce((s, v, i) => s + Math.abs(v - model.truth[i]), 0) / model.truth.length;
    const change = model.now.forecast.at(-1) - model.first.forecast.at(-1);
    const moved = model.moved ? ` Your change moves its last month by ${change >= 0 ? "+" : "−"}${Math.abs(change).toFixed(2)}.` : "";
    return `Point ${state.point + 1} of 48: ${model.window[state.point].toFixed(1)}. The forecast is off by ${error.toFixed(2)} on average.${moved}`;
  },
};
