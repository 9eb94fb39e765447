import { drawn, make } from "./dom.js";
import { count } from "./format.js";

/**
 * Trajectories: a token's probability and rank from layer to layer, as lines.
 *
 * @typedef {import("./data.js").Standing} Standing
 * @typedef {{className: string, points: (Standing | null)[], label: string}} Line
 */

const HEIGHT = 148;
const [LEFT, RIGHT, TOP, BOTTOM] = [34, 8, 8, 20];

/** Splits points into stretches of consecutive known ones. @param {(number | null)[]} ys @returns {[number, number][][]} */
function stretches(ys) {
  /** @type {[number, number][][]} */
  const found = [];
  ys.forEach((y, i) => {
    if (y === null) return;
    if (i && ys[i - 1] !== null) found[found.length - 1].push([i, y]);
    else found.push([[i, y]]);
  });
  return found;
}

class Panel {
  /** @param {string} title @param {boolean} ranks */
  constructor(title, ranks) {
    this.ranks = ranks;
    this.el = make("figure", "lens-panel");
    this.svg = drawn("svg", { role: "img", "aria-label": title, height: HEIGHT });
    this.el.append(make("figcaption", "", title), this.svg);
  }

  /** @param {Line[]} lines @param {number[]} layers labels @param {number} active index of a layer, or −1 @param {number} width */
  draw(lines, layers, active, width) {
    const [right, bottom] = [width - RIGHT, HEIGHT - BOTTOM];
    const worst = Math.max(10, ...lines.flatMap((line) => line.points.map((p) => p?.rank ?? 0)));
    const depth = Math.log1p(worst);
    const x = (/** @type {number} */ i) => LEFT + 6 + (layers.length > 1 ? (i * (right - LEFT - 12)) / (layers.length - 1) : (right - LEFT) / 2);
    const y = (/** @type {number} */ value) => TOP + (this.ranks ? Math.log1p(value) / depth : 1 - value) * (bottom - TOP);
    // Width and viewBox let it shrink with the page: paper is narrower, and printing does not redraw.
    this.svg.setAttribute("width", String(width));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren();
    const put = (/** @type {string} */ tag, /** @type {Record<string, string | number>} */ attributes, /** @type {string} */ text) =>
      this.svg.append(drawn(tag, attributes, text));
    const ticks = this.ranks ? [0, 10, 100, 1000, 10_000, 100_000].filter((t) => t <= worst) : [0, 0.5, 1];
    for (const tick of ticks) {
      put("line", { class: "lens-rule", x1: LEFT, x2: right, y1: y(tick), y2: y(tick) }, "");
      const name = this.ranks ? count(tick) : String(tick);
      put("text", { class: "lens-tick", x: LEFT - 5, y: y(tick) + 3.5, "text-anchor": "end" }, name);
    }
    const every = Math.ceil(layers.length / Math.max(2, (right - LEFT) / 34));
    layers.forEach((layer, i) => {
      if (i % every && i !== layers.length - 1) return;
      if (i === layers.length - 1 && i % every && i % every < every / 2) return;
      put("text", { class: "lens-tick", x: x(i), y: HEIGHT - 5, "text-anchor": "middle" }, String(layer));
    });
    if (active >= 0) put("line", { class: "lens-here", x1: x(active), x2: x(active), y1: TOP, y2: bottom }, "");
    for (const line of lines) this.line(line, x, y, layers);
  }

  /** @param {Line} line @param {(i: number) => number} x @param {(value: number) => number} y @param {number[]} layers */
  line({ className, points, label }, x, y, layers) {
    const values = points.map((p) => (p === null || p.rank < 0 ? null : this.ranks ? p.rank : p.prob));
    const group = drawn("g", { class: `lens-trajectory ${className}` });
    for (const stretch of stretches(values)) {
      const path = stretch.map(([i, v], n) => `${n ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`).join("");
      group.append(drawn("path", { d: path }));
    }
    // Dots if they can be told apart; one path for all of them, to save nodes.
    if (layers.length <= 48) {
      const dots = values.flatMap((v, i) => (v === null ? [] : [`M${x(i).toFixed(1)} ${y(v).toFixed(1)}h0`])).join("");
      if (dots) group.append(drawn("path", { class: "lens-dots", d: dots }));
    }
    group.append(drawn("title", {}, label));
    this.svg.append(group);
  }
}

export class Chart {
  constructor() {
    this.el = make("div", "lens-charts");
    this.panels = [new Panel("probability by layer", false), new Panel("rank by layer, 0 is first", true)];
    this.el.append(...this.panels.map((panel) => panel.el));
    this.width = 0;
    /** @type {[Line[], number[], number] | null} */
    this.last = null;
    this.observer = new ResizeObserver(() => {
      if (this.width === this.el.clientWidth || !this.last) return;
      this.width = this.el.clientWidth;
      requestAnimationFrame(() => this.last && this.draw(...this.last));
    });
    this.observer.observe(this.el);
  }

  /** @param {Line[]} lines @param {number[]} layers @param {number} active */
  draw(lines, layers, active) {
    this.last = [lines, layers, active];
    this.el.hidden = layers.length < 2;
    if (this.el.hidden) return;
    // Read all widths before writing, so that the page is laid out only once.
    const widths = this.panels.map((panel) => panel.el.clientWidth || 320);
    this.panels.forEach((panel, i) => panel.draw(lines, layers, active, widths[i]));
  }

  destroy() {
    this.observer.disconnect();
  }
}
