/* A figure that answers the reader's hand, without a kernel.
 *
 * A page holds <figure class="demo" data-demo="sam"> with a picture in it. Where scripts run, the
 * picture gives way to a canvas and real HTML inputs; `sam.js` beside this file says what is
 * computed and drawn. It exports `demo`:
 *
 *   caption             what the canvas shows, for those who do not see it
 *   ratio               height of the canvas by its width
 *   controls            name -> {label, min, max, step, value} or {label, options, value};
 *                       `hidden`: no input (the pointer and the arrow keys move it)
 *   moves               [name, name]: what the arrow keys on the canvas change
 *   key(event)          the name of a button that a key on the canvas presses, where given
 *   buttons             name -> label
 *   data                a JSON file beside this one, or nothing
 *   begin(state, data)  -> model, at the start and whenever a control changes
 *   change(model, state, name)   instead of a new start, where given
 *   press(name, model, state)    a button; may return controls to change
 *   advance(model, state, seconds)   -> is there more to come?  still: nothing moves by itself
 *   draw(pen, model, state)
 *   say(model, state)   one line of text on what is seen
 *   touch(model, state, at, phase)   a pointer in the units of the last view; as press
 *   grabs(model, state, at)   would a finger there take hold of something? (elsewhere it scrolls)
 */
import { Pen, clip } from "./pen.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** Values of the controls: what the address says where it makes sense, the defaults elsewhere. */
export function stateFrom(controls, fragment) {
  const asked = new URLSearchParams(fragment.replace(/^#demo\??/, ""));
  const state = {};
  for (const [name, c] of Object.entries(controls)) {
    const text = fragment.startsWith("#demo") ? asked.get(name) : null;
    const number = text === null || text.trim() === "" ? NaN : Number(text);
    if (c.options) state[name] = text !== null && Object.hasOwn(c.options, text) ? text : c.value;
    else state[name] = number >= c.min && number <= c.max ? number : c.value;
  }
  return state;
}

const made = (tag, attributes = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
};
const shown = (c, value) => c.format ? c.format(value) : String(+Number(value).toFixed(c.digits ?? 2));

export class Live {
  constructor(figure, demo, data) {
    Object.assign(this, { figure, demo, data, visible: true, playing: !calm.matches, moving: true });
    this.state = stateFrom(demo.controls, location.hash);
    this.canvas = made("canvas", { tabIndex: 0 });
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", demo.caption);
    this.line = made("p", { className: "demo-say" });
    this.line.setAttribute("aria-live", "polite");
    this.pen = new Pen(this.canvas, figure);
    this.build();
    this.listen();
    this.restart();
  }

  build() {
    const { figure, demo } = this;
    this.inputs = {};
    const bar = made("div", { className: "demo-controls" });
    for (const [name, c] of Object.entries(demo.controls)) {
      if (!c.hidden) bar.append(c.options ? this.choice(name, c) : this.slider(name, c));
    }
    for (const [name, label] of Object.entries(demo.buttons ?? {})) {
      bar.append(made("button", { type: "button", textContent: label, onclick: () => this.press(name) }));
    }
    this.play = made("button", { type: "button", onclick: () => this.toggle() });
    const reset = made("button", { type: "button", textContent: "Reset", onclick: () => this.reset() });
    this.link = made("a", { textContent: "Link to this setting" });
    if (!demo.still) bar.append(this.play);
    bar.append(reset, this.link);
    this.picture = figure.querySelector("img");
    this.picture.hidden = true;
    for (const words of figure.querySelectorAll("figcaption")) words.hidden = true;
    this.picture.after(this.canvas, this.line, bar);
  }

  slider(name, c) {
    const output = made("output");
    const input = made("input", { type: "range", min: c.min, max: c.max, step: c.step });
    input.oninput = () => this.set({ [name]: Number(input.value) });
    this.inputs[name] = () => {
      input.value = this.state[name];
      output.textContent = shown(c, this.state[name]);
      input.setAttribute("aria-valuetext", output.textContent);
    };
    return made("label", { className: "demo-slider" }, made("span", { textContent: c.label }), input, output);
  }

  choice(name, c) {
    const group = made("fieldset", {}, made("legend", { textContent: c.label }));
    const id = `demo-${name}`;
    for (const [value, label] of Object.entries(c.options)) {
      const input = made("input", { type: "radio", name: id, value });
      input.onchange = () => this.set({ [name]: value });
      group.append(made("label", {}, input, ` ${label}`));
    }
    this.inputs[name] = () => {
      for (const i of group.querySelectorAll("input")) i.checked = i.value === this.state[name];
    };
    return group;
  }

  listen() {
    const { canvas, demo } = this;
    const point = (event, phase) => {
      if (!demo.touch || this.stopped) return;
      const box = canvas.getBoundingClientRect();
      const at = this.pen.world(event.clientX - box.left, event.clientY - box.top);
      this.set(demo.touch(this.model, this.state, at, phase) ?? {});
    };
    // A finger that takes hold of something drags it; any other finger may scroll, and acts where it taps.
    const where = (e) => { const box = canvas.getBoundingClientRect(); return this.pen.world(e.clientX - box.left, e.clientY - box.top); };
    canvas.onpointerdown = (e) => {
      this.grab = !this.stopped && Boolean(demo.grabs?.(this.model, this.state, where(e)));
      this.held = this.grab || e.pointerType !== "touch";
      if (!this.held) return;
      canvas.setPointerCapture(e.pointerId);
      point(e, "down");
    };
    canvas.addEventListener("touchstart", (e) => this.grab && e.preventDefault(), { passive: false });
    canvas.onpointermove = (e) => this.held && point(e, "move");
    canvas.onpointerup = (e) => {
      if (!this.held) point(e, "down");
      point(e, "up");
      this.held = false;
    };
    canvas.onpointercancel = (e) => { if (this.held) point(e, "up"); this.held = false; };
    canvas.onkeydown = (e) => this.key(e);
    new IntersectionObserver(([seen]) => { this.visible = seen.isIntersecting; this.tick(); }).observe(canvas);
    new ResizeObserver(() => this.show()).observe(this.figure);
    new MutationObserver(() => this.show()).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    document.addEventListener("visibilitychange", () => this.tick());
    addEventListener("hashchange", () => {
      if (location.hash.startsWith("#demo")) this.set(stateFrom(demo.controls, location.hash));
    });
  }

  key(event) {
    const [across, up] = this.demo.moves ?? [];
    const move = { ArrowLeft: [across, -1], ArrowRight: [across, 1], ArrowDown: [up, -1], ArrowUp: [up, 1] }[event.key];
    const button = this.demo.key?.(event);
    if (button) this.press(button);
    else if (event.key === " ") this.toggle();
    else if (move?.[0]) {
      const [name, sign] = move;
      const c = this.demo.controls[name];
      this.set({ [name]: clip(this.state[name] + sign * c.step, c) });
    } else return;
    event.preventDefault();
  }

  /** Controls take new values; the model begins anew, or changes as the demo says. */
  set(values) {
    const changed = Object.keys(values).filter((name) => values[name] !== this.state[name]);
    Object.assign(this.state, values);
    if (!changed.length) return this.show();
    if (this.demo.change && !this.stopped) this.guard(() => changed.forEach((name) => this.demo.change(this.model, this.state, name)));
    else return this.restart();
    this.sync();
  }

  restart() {
    this.stopped = false;
    this.guard(() => { this.model = this.demo.begin(this.state, this.data); });
    this.sync();
  }

  sync() {
    for (const update of Object.values(this.inputs)) update();
    this.link.href = "#demo?" + new URLSearchParams(Object.entries(this.state).map(([k, v]) => [k, String(v)]));
    this.moving = true;
    if (calm.matches && !this.playing) this.settle();
    this.show();
    this.tick();
  }

  press(name) {
    if (this.stopped) return;
    this.guard(() => this.set(this.demo.press(name, this.model, this.state) ?? {}));
    this.sync();
  }

  reset() { this.state = stateFrom(this.demo.controls, ""); this.restart(); }

  toggle() {
    this.playing = !this.playing || !this.moving;
    if (!this.moving) this.restart();
    this.show();
    this.tick();
  }

  /** Readers who prefer less motion see where it ends. */
  settle(steps = 600) {
    this.guard(() => { for (let i = 0; i < steps && this.moving; i++) this.moving = this.demo.advance(this.model, this.state, 1 / 60); });
  }

  tick() {
    const runs = () => this.playing && this.moving && this.visible && !document.hidden && !this.stopped;
    if (this.asked || !runs()) return;
    this.asked = true;
    let last = performance.now();
    const next = (now) => {
      if (!runs()) { this.asked = false; this.show(); return; }
      this.frame(Math.min(0.05, (now - last) / 1000));
      last = now;
      requestAnimationFrame(next);
    };
    requestAnimationFrame(next);
  }

  frame(seconds) {
    this.guard(() => { this.moving = this.demo.advance(this.model, this.state, seconds); });
    this.show();
  }

  show() {
    if (this.stopped || !this.model) return;
    this.guard(() => {
      this.pen.begin(this.demo.ratio);
      this.demo.draw(this.pen, this.model, this.state);
      const line = this.demo.say(this.model, this.state);
      if (line !== this.line.textContent) this.line.textContent = line;
    });
    this.play.textContent = this.playing && this.moving ? "Pause" : "Play";
  }

  /** What is not a number never reaches the screen: the demo stops and says where. */
  guard(work) {
    try { work(); } catch (error) {
      this.stopped = true;
      this.line.textContent = `The demo stopped: ${error.message} Press Reset.`;
    }
  }
}

/** Turn a figure into a demo; where something is missing the picture stays, and one line says what. */
export async function start(figure) {
  const name = figure.dataset.demo;
  try {
    const { demo } = await import(new URL(`./${name}.js`, import.meta.url));
    let data = null;
    if (demo.data) {
      const answer = await fetch(new URL(`./${demo.data}`, import.meta.url));
      if (!answer.ok) throw new Error(`${demo.data} is missing`);
      data = await answer.json().catch(() => { throw new Error(`${demo.data} is damaged`); });
      demo.check?.(data);
    }
    figure.live = new Live(figure, demo, data);
  } catch (error) {
    figure.append(made("p", { className: "demo-say", textContent: `The demo could not start: ${error.message}.` }));
  }
}

for (const figure of document.querySelectorAll("figure.demo")) start(figure);
