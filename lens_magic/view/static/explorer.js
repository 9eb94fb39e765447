import { asPng, asSvg, asTable, asText, candidatesTable, save, toClipboard } from "./copy.js";
import { grouped, modelNames } from "./format.js";
import { onPaper } from "./paper.js";
import { Stage } from "./stage.js";

/**
 * The explorer: a stage, and the reader's actions on it.
 *
 * @typedef {import("./data.js").LensData} LensData
 * @typedef {import("./frame.js").Cell} Cell
 * @typedef {import("./stage.js").Options} Options
 * @typedef {import("./stage.js").Acts} Acts
 */

const MOST_DRAWN = 3000; // cells in a saved picture

/**
 * First and last of the rows (or columns) that are in view as good as whole, or the one in the middle if none is.
 * @param {number} first @param {number} count in view, in fractions @param {number} all @returns {[number, number]}
 */
function whole(first, count, all) {
  const [from, to] = [Math.ceil(first - 0.2), Math.min(all, Math.floor(first + count + 0.2)) - 1];
  const middle = Math.min(all - 1, Math.floor(first + count / 2));
  return from <= to ? [from, to] : [middle, middle];
}

/** @implements {Acts} */
export class Explorer extends Stage {
  /** @param {HTMLElement} el @param {LensData[]} datas one or two @param {Options} [options] */
  constructor(el, datas, options = {}) {
    super(el, datas, options);
    // Whoever clicks a cell after selecting text on the page wants to copy the cell.
    for (const grid of this.grids) grid.el.addEventListener("pointerdown", () => document.getSelection()?.removeAllRanges());
    this.root.addEventListener("copy", (event) => {
      if (!(event.target instanceof Element) || !event.target.closest(".lens-scroll") || String(document.getSelection())) return;
      event.clipboardData?.setData("text/plain", this.copied("text"));
      event.preventDefault();
    });
    this.ended = new AbortController();
    addEventListener("beforeprint", () => this.toPaper(), { signal: this.ended.signal });
    addEventListener("afterprint", () => this.offPaper(), { signal: this.ended.signal });
    this.root.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey) return; // text fields stop their own key events
      event.preventDefault();
      event.stopPropagation();
      this.find.focus();
    });
  }

  destroy() {
    this.ended.abort();
    super.destroy();
  }

  /** Adds the whole table, which only paper shows and which is gone again afterwards. */
  toPaper() {
    this.offPaper();
    this.papers = (this.models ?? []).map((model, i) => onPaper(model, Math.floor(this.grids[i].window()[0]) || 0));
    this.body?.before(...this.papers);
  }

  offPaper() {
    for (const paper of this.papers ?? []) paper.remove();
  }

  /** Handles the table's keys other than movement. @param {KeyboardEvent} event @returns {boolean} */
  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    switch (event.key) {
      case "Enter":
        this.turn();
        return true;
      case "Escape":
        if (this.view.mode === "token") this.turn();
        else if (this.find.token >= 0) this.find.clear();
        else return false;
        return true;
      case "[":
      case "]":
        this.step(event.key === "[" ? -1 : 1);
        return true;
      case "p":
        this.pinTops(this.shownFrames[this.current].map((frame) => this.frames.indexOf(frame)), this.cell);
        return true;
      default:
        return false;
    }
  }

  /** @param {number} by positions */
  step(by) {
    const { positions } = this.labels;
    const to = positions[positions.indexOf(this.cell.position) + by];
    if (to !== undefined) this.go({ ...this.cell, position: to });
  }

  /** Goes to a cell that the reader chose, and reports it. @param {Cell} cell */
  go(cell) {
    this.select(cell);
    for (const grid of this.grids) grid.reveal(grid.active); // even if it was selected already and has been scrolled away
    this.options.onSelect?.(this.selected());
  }

  /** Goes to a cell without reporting it. @param {Partial<Cell>} cell labels */
  select(cell) {
    const now = this.selected();
    const wanted = { ...now, ...cell };
    const { sites, layers, positions } = this.labels;
    if (!sites.includes(wanted.site) || !layers.includes(wanted.layer) || !positions.includes(wanted.position)) return;
    if (wanted.site === now.site && wanted.layer === now.layer && wanted.position === now.position) return;
    this.cell = { ...wanted, j: 0 };
    if (!this.view.sites.includes(wanted.site)) this.view.sites = [wanted.site];
    if (!this.view.layers.includes(wanted.layer)) this.view.layers = layers;
    this.draw(true);
  }

  /** @param {number} token vocabulary index, or −1 @param {import("./find.js").Found | null} place */
  foundToken(token, place) {
    const [first] = this.datas;
    const lost = token < 0 && this.view.shade === "token" && !first.header.tracked.includes(first.row(this.view.token));
    this.view = { ...this.view, token: token < 0 && !lost && this.view.shade === "token" ? this.view.token : token, shade: lost ? "prob" : this.view.shade };
    if (place) this.cell = { ...this.cell, layer: place.layer, position: place.position, j: 0 };
    this.draw(place !== null);
    if (place) this.options.onSelect?.(this.selected());
  }

  /** @param {number} i which run @param {number} token @param {Cell} cell @param {number | null} [layer] of a pinned cell */
  pin(i, token, { site, position }, layer = null) {
    this.pins.toggle(this.pinOf(i, token, { site, position }, layer));
  }

  /** @param {number} i which run @param {number} token @param {{site: string, position: number}} where @param {number | null} layer @returns {import("./pins.js").Pinned} */
  pinOf(i, token, { site, position }, layer) {
    const { data } = this.frames[i];
    return { id: data.arrays.ids[token], name: data.header.tokens[token], site, position, layer };
  }

  /** @param {number} i which run @param {Cell} cell */
  pinCell(i, cell) {
    this.pinTops([i], cell);
  }

  /** Pins a cell's top token in each of some runs: the difference of two shows both. @param {number[]} runs @param {Cell} cell */
  pinTops(runs, cell) {
    const pins = runs.flatMap((i) => {
      const offset = this.offset(i, cell);
      return offset < 0 ? [] : [this.pinOf(i, this.frames[i].data.top(offset), cell, cell.layer)];
    });
    const different = pins.filter((pin, n) => pins.findIndex(({ id }) => id === pin.id) === n);
    if (different.length) this.pins.toggle(...different);
  }

  /** @param {number} i which run @param {Cell} cell */
  offset(i, cell) {
    const { data } = this.frames[i];
    const [site, layer, position] = [data.siteAt.get(cell.site), data.layerAt.get(cell.layer), data.positionAt.get(cell.position)];
    return site === undefined || layer === undefined || position === undefined ? -1 : data.cell(site, layer, position);
  }

  /** The selection as text or as a table. @param {"text" | "tsv"} how */
  copied(how) {
    const model = this.models?.[this.current];
    if (!model) return "";
    const range = this.grids[this.current].range();
    const single = range[0] === range[2] && range[1] === range[3];
    if (how === "text") return asText(model, range);
    const offset = single && this.view.mode === "table" && model.runs === 1 ? this.offset(this.current, this.cell) : -1;
    if (offset < 0) return asTable(model, range);
    const { data } = this.frames[this.current];
    return candidatesTable(data.candidates(offset, data.positionAt.get(this.cell.position) ?? -1));
  }

  /** The range that a picture shows: the selection, or all cells in view. */
  pictured() {
    const grid = this.grids[this.current];
    const range = grid.range();
    if (range[0] !== range[2] || range[1] !== range[3] || !this.models) return range;
    const [row, col, rows, cols] = grid.window();
    const model = this.models[this.current];
    const [r0, r1] = whole(row, rows, model.rows);
    const [c0, c1] = whole(col, cols, model.cols);
    return [r0, c0, r1, c1];
  }

  /** Copies or saves in one of the formats. @param {string} what */
  async take(what) {
    const model = this.models?.[this.current];
    if (!model) return;
    if (what === "text" || what === "tsv") {
      const done = await toClipboard(this.copied(what));
      this.say(done ? "copied" : "the browser does not allow copying");
      return;
    }
    const range = this.pictured();
    const cells = (range[2] - range[0] + 1) * (range[3] - range[1] + 1);
    if (cells > MOST_DRAWN) {
      this.say(`${grouped(cells)} cells are too many for a picture; select at most ${grouped(MOST_DRAWN)}`);
      return;
    }
    const { model: made, how } = this.datas[0].header;
    const whose = this.captions?.[this.current].textContent ?? [modelNames([made])[0], how].filter(Boolean).join(" · ");
    const svg = asSvg(model, range, this.root, `${whose} · ${this.view.sites.join(", ")}`);
    const blob = what === "svg" ? new Blob([svg], { type: "image/svg+xml" }) : await asPng(svg);
    if (blob) save(blob, `lens.${what}`);
    this.say(blob ? `saved as lens.${what}` : "this browser cannot draw the picture");
  }

  /** @param {string} text shown for four seconds */
  say(text) {
    this.toolbar.said.textContent = text;
    clearTimeout(this.saying);
    this.saying = setTimeout(() => (this.toolbar.said.textContent = ""), 4000);
  }
}
