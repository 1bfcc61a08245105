/* Drawing for the live figures: a view in the demo's own units, the page's colours, no NaN. */

const COLOURS = ["ink", "muted", "ground", "method", "plain", "tuned", "other", "extra", "data"];

/** Throws where a number is none: name says what it belongs to. */
export function finite(numbers, name) {
  for (const value of numbers) if (!Number.isFinite(value)) throw new RangeError(`${name} is not a number.`);
  return numbers;
}

/** A value within the bounds of a control. */
export const clip = (value, { min, max }) => Math.min(max, Math.max(min, value));

export class Pen {
  constructor(canvas, figure) {
    Object.assign(this, { canvas, figure, context: canvas.getContext("2d"), maps: new Map() });
  }

  /** A clean canvas at the size of its column, sharp on any screen; colours from the page. */
  begin(ratio) {
    const { canvas, context } = this;
    const width = this.figure.clientWidth, height = Math.round(width * ratio);
    const dots = Math.min(devicePixelRatio || 1, 2);
    if (canvas.width !== Math.round(width * dots) || canvas.height !== Math.round(height * dots)) {
      canvas.width = Math.round(width * dots);
      canvas.height = Math.round(height * dots);
      canvas.style.height = `${height}px`;
    }
    const style = getComputedStyle(this.figure);
    for (const name of COLOURS) this[name] = style.getPropertyValue(`--demo-${name}`).trim();
    Object.assign(this, { width, height, small: width < 480 });
    context.setTransform(dots, 0, 0, dots, 0, 0);
    context.clearRect(0, 0, width, height);
    context.lineJoin = context.lineCap = "round";
    this.view([0, 1], [0, 1]);
  }

  /** From now on x and y are in these ranges; box: left, top, right, bottom as parts of the canvas. */
  view(x, y, box = [0, 0, 1, 1]) {
    const left = box[0] * this.width, right = box[2] * this.width;
    const top = box[1] * this.height, bottom = box[3] * this.height;
    Object.assign(this, { x, y, left, right, top, bottom });
    this.sx = (right - left) / (x[1] - x[0]);
    this.sy = (bottom - top) / (y[1] - y[0]);
  }

  /** From pixels of the canvas to the units of the view. */
  world(px, py) { return [this.x[0] + (px - this.left) / this.sx, this.y[0] + (this.bottom - py) / this.sy]; }
  at(point, what) {
    finite(point, what);
    return [this.left + (point[0] - this.x[0]) * this.sx, this.bottom - (point[1] - this.y[0]) * this.sy];
  }

  /** Only what lies in the view is drawn by work(). */
  inside(work) {
    const c = this.context;
    c.save();
    c.beginPath();
    c.rect(this.left, this.top, this.right - this.left, this.bottom - this.top);
    c.clip();
    work();
    c.restore();
  }

  stroke({ colour = this.ink, width = 2, dash = [] }) {
    Object.assign(this.context, { strokeStyle: colour, lineWidth: width });
    this.context.setLineDash(dash);
    this.context.stroke();
    this.context.setLineDash([]);
  }

  line(points, look = {}) {
    if (points.length < 2) return;
    this.context.beginPath();
    points.forEach((p, i) => this.context[i ? "lineTo" : "moveTo"](...this.at(p, look.what ?? "a line")));
    if (look.fill) { this.context.fillStyle = look.fill; this.context.fill(); }
    if (look.colour || !look.fill) this.stroke(look);
  }

  /** r in pixels; ring: only its border. */
  dot(point, { r = 4, colour = this.ink, rim = this.ground, ring = false, what = "a point" } = {}) {
    const [x, y] = this.at(point, what), c = this.context;
    c.beginPath();
    c.arc(x, y, r, 0, 2 * Math.PI);
    if (!ring) { c.fillStyle = colour; c.fill(); }
    this.stroke({ colour: ring ? colour : rim, width: ring ? 2 : 1 });
  }

  diamond(point, { r = 5, colour = this.ink, what = "a point" } = {}) {
    const [x, y] = this.at(point, what), c = this.context;
    c.beginPath();
    [[0, -r], [r, 0], [0, r], [-r, 0]].forEach(([dx, dy], i) => c[i ? "lineTo" : "moveTo"](x + dx, y + dy));
    c.closePath();
    c.fillStyle = colour;
    c.fill();
    this.stroke({ colour: this.ground, width: 1 });
  }

  arrow(from, to, look = {}) {
    const what = look.what ?? "an arrow";
    const [x0, y0] = this.at(from, what), [x1, y1] = this.at(to, what);
    const angle = Math.atan2(y1 - y0, x1 - x0), c = this.context, head = look.head ?? 9;
    if (Math.hypot(x1 - x0, y1 - y0) < 1) return;
    this.line([from, to], look);
    c.beginPath();
    c.moveTo(x1, y1);
    for (const side of [-0.45, 0.45]) c.lineTo(x1 - head * Math.cos(angle + side), y1 - head * Math.sin(angle + side));
    c.closePath();
    c.fillStyle = look.colour ?? this.ink;
    c.fill();
  }

  text(point, words, { colour = this.ink, size = 14, align = "left", base = "alphabetic", bold = false, halo = null } = {}) {
    const [x, y] = this.at(point, words), c = this.context;
    c.font = `${bold ? 600 : 400} ${Math.max(12, this.small ? size - 1 : size)}px system-ui, sans-serif`;
    Object.assign(c, { fillStyle: colour, textAlign: align, textBaseline: base });
    if (halo) {
      Object.assign(c, { strokeStyle: halo, lineWidth: 5 });
      c.strokeText(words, x, y);
    }
    c.fillText(words, x, y);
  }

  /** Coloured names in a row, from point on: [[name, colour], ...]. */
  legend(point, names, size = 14) {
    let [x, y] = this.at(point, "a legend");
    const c = this.context;
    c.font = `600 ${Math.max(12, this.small ? size - 2 : size)}px system-ui, sans-serif`;
    Object.assign(c, { textAlign: "left", textBaseline: "middle" });
    for (const [name, colour] of names) {
      c.fillStyle = colour;
      c.beginPath();
      c.arc(x + 5, y, 5, 0, 2 * Math.PI);
      c.fill();
      c.fillStyle = this.ink;
      c.fillText(name, x + 14, y);
      x += 14 + c.measureText(name).width + (this.small ? 9 : 18);
    }
  }

  rect(x, y, { colour, fill, width = 1 } = {}) {
    const [a, b] = this.at([x[0], y[0]], "a box"), [d, e] = this.at([x[1], y[1]], "a box");
    if (fill) { this.context.fillStyle = fill; this.context.fillRect(a, b, d - a, e - b); }
    if (colour) { this.context.beginPath(); this.context.rect(a, b, d - a, e - b); this.stroke({ colour, width }); }
  }

  /** Columns of numbers as a strip of colours, blue below the middle and orange above. */
  strip(columns, low, high) {
    if (!columns.length) return;
    const rows = columns[0].length, wide = this.x[1] - this.x[0];
    const image = (this.roll ??= new OffscreenCanvas(wide, rows)), c = image.getContext("2d");
    const pixels = c.createImageData(wide, rows);
    columns.forEach((column, x) => finite(column, "the strip").forEach((value, y) => {
      const t = Math.min(1, Math.max(-1, (2 * (value - low)) / (high - low) - 1)), far = Math.abs(t);
      const end = t < 0 ? [0, 114, 178] : [213, 94, 0];
      pixels.data.set([...end.map((v) => 245 + far * (v - 245)), 255], 4 * (y * wide + x));
    }));
    c.putImageData(pixels, 0, 0);
    this.context.imageSmoothingEnabled = false;
    this.context.drawImage(image, this.left, this.top, this.right - this.left, this.bottom - this.top);
  }

  /** A surface as colours, dark is low; drawn once for each key. */
  map(key, height, low, high, n = 192) {
    let image = this.maps.get(key);
    if (!image) {
      image = new OffscreenCanvas(n, n);
      const c = image.getContext("2d"), pixels = c.createImageData(n, n);
      for (let i = 0; i < n * n; i++) {
        const x = this.x[0] + ((i % n) + 0.5) / n * (this.x[1] - this.x[0]);
        const y = this.y[1] - (Math.floor(i / n) + 0.5) / n * (this.y[1] - this.y[0]);
        const [value] = finite([height(x, y)], "the surface");
        pixels.data.set(shade((value - low) / (high - low)), 4 * i);
      }
      c.putImageData(pixels, 0, 0);
      this.maps.set(key, image);
    }
    this.context.imageSmoothingEnabled = true;
    this.context.drawImage(image, this.left, this.top, this.right - this.left, this.bottom - this.top);
  }
}

/* Matplotlib's YlGnBu_r, the book's colours of surfaces, in nine steps of twelve bands. */
const SHADES = [[8, 29, 88], [37, 52, 148], [34, 94, 168], [29, 145, 192], [65, 182, 196],
  [127, 205, 187], [199, 233, 180], [237, 248, 177], [255, 255, 217]];
function shade(part) {
  const banded = (Math.floor(Math.min(0.999, Math.max(0, part)) * 14) + 0.5) / 14 * 8;
  const i = Math.min(7, Math.floor(banded)), t = banded - i;
  return [...SHADES[i].map((v, k) => v + t * (SHADES[i + 1][k] - v)), 255];
}
