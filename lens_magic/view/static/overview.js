import { clamp, make } from "./dom.js";
import { palette } from "./theme.js";

/**
 * A whole table as a strip with one pixel per cell and the part in view marked. A click goes there.
 *
 * @typedef {import("./cells.js").Model} Model
 */

const MOST_PIXELS = 4096; // rows or columns of pixels; beyond that, some cells are left out

export class Overview {
  /** @param {(down: number, across: number) => void} onGo fractions of the table */
  constructor(onGo) {
    this.el = make("div", "lens-overview");
    this.el.title = "The whole run: click to go there";
    this.el.setAttribute("role", "img");
    this.el.setAttribute("aria-label", "The whole run, with the part in view marked");
    this.canvas = make("canvas");
    this.frame = make("div", "lens-window");
    this.el.append(this.canvas, this.frame);
    this.task = 0;
    this.owed = false; // whether to draw later: the strip is hidden, or the host has not attached it to the document yet
    const go = (/** @type {PointerEvent} */ event) => {
      const box = this.canvas.getBoundingClientRect();
      onGo(clamp((event.clientY - box.top) / box.height, 0, 1), clamp((event.clientX - box.left) / box.width, 0, 1));
    };
    this.el.addEventListener("pointerdown", (event) => {
      this.el.setPointerCapture(event.pointerId);
      go(event);
    });
    this.el.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) go(event);
    });
  }

  /** Draws a table 30 ms later, unless another call replaces it. @param {Model} model */
  show(model) {
    this.model = model;
    clearTimeout(this.task);
    this.task = setTimeout(() => this.draw(), 30);
  }

  draw() {
    const { model, canvas } = this;
    this.owed = !canvas.isConnected || this.el.hidden;
    if (!model || this.owed) return;
    const [rows, cols] = [Math.min(model.rows, MOST_PIXELS), Math.min(model.cols, MOST_PIXELS)];
    const context = canvas.getContext("2d");
    if (!context || !rows || !cols) return;
    const colours = palette(canvas);
    [canvas.width, canvas.height] = [cols, rows];
    const image = context.createImageData(cols, rows);
    let i = 0;
    for (let r = 0; r < rows; r++) {
      const row = Math.floor((r * model.rows) / rows);
      for (let c = 0; c < cols; c++, i += 4) {
        const [ramp, strength] = model.tint(row, Math.floor((c * model.cols) / cols));
        const of = ramp === "more" && strength < 0 ? "less" : ramp;
        const [red, green, blue] = colours[of];
        image.data[i] = red;
        image.data[i + 1] = green;
        image.data[i + 2] = blue;
        image.data[i + 3] = 255 * Math.min(1, Math.abs(strength) * (colours.depth[of] + 0.25));
      }
    }
    context.putImageData(image, 0, 0);
    // Cells larger than a pixel stay sharp; smaller ones are averaged.
    canvas.style.imageRendering = rows < canvas.clientHeight ? "pixelated" : "auto";
  }

  /** Marks what is in view. @param {number[]} window the grid's `[row, col, rows, cols]` */
  mark([row, col, rows, cols]) {
    if (!this.model) return;
    this.el.hidden = rows >= this.model.rows && cols >= this.model.cols;
    if (this.owed) this.draw();
    const part = (/** @type {number} */ n, /** @type {number} */ of) => `${(100 * clamp(n / of, 0, 1)).toFixed(2)}%`;
    // Of a long run the mark is larger than the part in view, and must not stick out at the end.
    this.frame.style.top = `min(${part(row, this.model.rows)}, 100% - var(--lens-window-least))`;
    this.frame.style.left = `min(${part(col, this.model.cols)}, 100% - var(--lens-window-least))`;
    this.frame.style.height = part(Math.min(rows, this.model.rows - row), this.model.rows);
    this.frame.style.width = part(Math.min(cols, this.model.cols - col), this.model.cols);
  }
}
