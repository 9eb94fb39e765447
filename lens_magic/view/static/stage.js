import { clamp, make } from "./dom.js";
import { Frame, labelsOf, tokensAt } from "./frame.js";
import { fitted, NUMBER_WIDTH } from "./fit.js";
import { VirtualGrid } from "./grid.js";
import { gridModel, keyOf, ZOOMS } from "./cells.js";
import { Overview } from "./overview.js";
import { Detail } from "./detail.js";
import { Chart } from "./chart.js";
import { Pins } from "./pins.js";
import { Find } from "./find.js";
import { Toolbar } from "./toolbar.js";
import { Legend } from "./legend.js";
import { changeOf, modelNames } from "./format.js";
import { onTheme } from "./theme.js";
import { hasOutput, trajectory } from "./query.js";

/**
 * The parts of the explorer and what they show together: draws one run, or two, as a table in `el`. `explorer.js` adds the
 * reader's actions; a stage is only ever created as an `Explorer`.
 *
 * @typedef {import("./data.js").LensData} LensData
 * @typedef {import("./frame.js").Cell} Cell
 * @typedef {import("./frame.js").View} View
 * @typedef {import("./pins.js").Pin} Pin
 * @typedef {import("./data.js").Packed} Packed
 * @typedef {{onSelect?: (cell: Cell) => void, strip?: HTMLElement, compare?: Packed, state?: State}} Options
 * @typedef {{view: View, cell: Cell & {j: number}, pins: Pin[], scroll: [number, number], begun: boolean, focused: boolean}} State
 * @typedef {{step: (by: number) => void, take: (what: string) => void, go: (cell: Cell) => void,
 *   foundToken: (token: number, place: import("./find.js").Found | null) => void,
 *   pin: (i: number, token: number, cell: Cell) => void, pinCell: (i: number, cell: Cell) => void,
 *   key: (event: KeyboardEvent) => boolean, say: (text: string) => void}} Acts the reader's actions, which the parts call on the explorer
 */

const [BESIDE, STRIP] = [286, 50]; // what the details and the strip take of a table's width, with the gaps before them
const NARROW = 936; // in less the details are below the table in any case
const SCROLL_BAR = 20; // no browser's is wider

export class Stage {
  /** @param {HTMLElement} el @param {LensData[]} datas one or two @param {Options} options */
  constructor(el, datas, options) {
    const acts = /** @type {Acts} */ (/** @type {unknown} */ (this));
    this.datas = datas;
    for (const data of datas.slice(1)) data.match(datas[0]);
    this.options = options;
    this.labels = labelsOf(datas);
    this.frames = datas.map((data) => new Frame(data, this.labels));
    const { sites, layers, positions } = this.labels;
    const site = sites.includes("resid_post") ? "resid_post" : sites[sites.length - 1];
    /** @type {View} */
    this.view = { mode: "table", sites: [site], layers, zoom: 1, transposed: false, shade: "prob", over: "all", token: -1, pairing: "beside" };
    /** @type {Cell & {j: number}} */
    this.cell = { site, layer: layers[layers.length - 1], position: positions.find((p) => p >= 0) ?? positions[0], j: 0 };
    this.root = make("div", "lens-root");
    // Lumino (JupyterLab) would otherwise take the arrow keys for the notebook's own cells.
    this.root.dataset.lmSuppressShortcuts = "true";
    this.grids = datas.map((_, i) => this.makeGrid(i, acts));
    this.current = 0; // which grid the reader was in last: what is copied, saved or pinned is of its run
    this.grids.forEach((grid, i) => grid.el.addEventListener("focus", () => (this.current = i)));
    this.id = this.grids[0].id;
    this.toolbar = new Toolbar(datas, this.labels, this.id, {
      onView: (change) => this.set(change),
      onToken: (by) => acts.step(by),
      onExport: (what) => acts.take(what),
    });
    this.find = new Find(datas, {
      id: this.id,
      site: () => this.cell.site,
      layers: () => this.view.layers,
      textOf: (token) => this.textOf(token),
      nameOf: (i) => this.nameOf(i),
      onFound: (token, place) => acts.foundToken(token, place),
      onLeave: () => this.grids[this.current].el.focus(),
    });
    this.toolbar.controls.append(this.find.el);
    this.overview = new Overview((down, across) => this.grids.forEach((grid) => grid.centre(down, across)));
    this.details = this.frames.map((frame, i) => {
      /** @type {import("./detail.js").DetailCallbacks} */
      const on = { onGo: (cell) => acts.go(cell), onPin: (token, cell) => acts.pin(i, token, cell), onPinCell: (cell) => acts.pinCell(i, cell) };
      return new Detail(frame, on, datas.length > 1 ? this.nameOf(i) : undefined);
    });
    this.legend = new Legend();
    this.pins = new Pins({
      onChange: () => this.draw(),
      onGo: (pin) => acts.go({ site: pin.site, layer: pin.layer ?? this.cell.layer, position: pin.position }),
      onLeave: () => this.grids[this.current].el.focus({ preventScroll: true }),
      onFull: (words) => acts.say(words),
    });
    this.chart = new Chart();
    if (options.state) this.restore(options.state);
    for (const grid of this.grids) grid.begun = options.state?.begun ?? false;
    this.assemble();
    el.append(this.root);
    this.endTheme = onTheme(this.root, () => this.overview.draw());
    this.observer = new ResizeObserver(() => this.arrange());
    this.observer.observe(this.root);
    this.draw();
    if (!options.state) return;
    if (options.state.focused) this.grids[0].el.focus({ preventScroll: true });
    if (options.state.begun) for (const grid of this.grids) grid.el.scrollTo(...options.state.scroll);
  }

  assemble() {
    if (this.grids.length > 1) this.captions = this.grids.map((_, i) => make("p", "lens-caption", this.titleOf(i)));
    this.panes = this.grids.map((grid, i) => {
      const pane = make("div", "lens-pane");
      if (this.captions) pane.append(this.captions[i]);
      pane.append(grid.el);
      return pane;
    });
    const table = make("div", "lens-table");
    const panes = make("div", "lens-panes");
    panes.append(...this.panes);
    table.append(panes, this.overview.el);
    const details = make("div", "lens-details");
    details.append(...this.details.map((detail) => detail.el));
    this.body = make("div", "lens-body");
    this.body.append(table, details);
    this.lower = make("div", "lens-lower");
    this.lower.append(this.pins.el, this.chart.el);
    const parts = [this.toolbar.el, this.toolbar.controls, this.options.strip, this.body, this.legend.el, this.lower];
    this.root.append(...parts.flatMap((part) => part ?? []));
  }

  /** @param {number} i @param {Acts} acts */
  makeGrid(i, acts) {
    return new VirtualGrid({
      onHover: () => this.detailed(i),
      onMove: () => this.moved(i),
      onOpen: () => this.turn(),
      onScroll: () => this.scrolled(i),
      onKey: (event) => acts.key(event),
    });
  }

  /** @param {number} i which run */
  nameOf(i) {
    const names = modelNames(this.datas.map((data) => data.header.model));
    const own = this.datas[i].header.name;
    return own || (names[0] === names[1] ? ["first run", "second run"][i] : names[i]);
  }

  /** A run's name, and how it was made. @param {number} i which run */
  titleOf(i) {
    const { how } = this.datas[i].header;
    return how ? `${this.nameOf(i)} · ${how}` : this.nameOf(i);
  }

  /** Restores the state of another view of the same run. @param {State} state */
  restore({ view, cell, pins }) {
    const { layers, sites, positions } = this.labels;
    const kept = view.layers.filter((layer) => layers.includes(layer));
    this.view = { ...view, layers: kept.length ? kept : layers, sites: view.sites.filter((site) => sites.includes(site)), token: -1 };
    if (view.shade === "token") this.view.shade = "prob";
    if (positions.includes(cell.position) && layers.includes(cell.layer) && sites.includes(cell.site)) this.cell = cell;
    this.pins.list = pins;
  }

  /** @returns {State} */
  state() {
    const { el, begun } = this.grids[0];
    return { view: this.view, cell: this.cell, pins: this.pins.list, scroll: [el.scrollLeft, el.scrollTop], begun, focused: el.matches(":focus") };
  }

  /** Switches between all tokens and one token. */
  turn() {
    this.set({ mode: this.view.mode === "table" ? "token" : "table" });
  }

  /** Changes what is shown; the active cell stays the same if possible. @param {Partial<View>} wanted */
  set(wanted) {
    const before = this.view;
    // The KL between the runs is one number for both, which only their difference shows.
    const change = { ...wanted };
    if (wanted.shade === "apart") change.pairing = "difference";
    else if (wanted.pairing === "beside" && before.shade === "apart") change.shade = "prob";
    this.view = { ...before, ...change };
    this.view.zoom = clamp(this.view.zoom, 0, ZOOMS.length - 1);
    // The view of one token is for comparing sites side by side; the table shows one site by default.
    if (change.mode && change.mode !== before.mode) this.view.sites = change.mode === "token" ? this.labels.sites : [this.cell.site];
    const { sites, layers } = this.view;
    const was = this.cell;
    if (!sites.includes(was.site)) this.cell = { ...this.cell, site: sites[sites.length - 1] };
    if (!layers.includes(was.layer)) this.cell = { ...this.cell, layer: layers[layers.length - 1] };
    const same = Object.keys(change).every((key) => ["shade", "over", "token"].includes(key) || (key === "sites" && sites.length === before.sites.length && this.view.mode === "table"));
    this.draw(!same);
    if (this.cell !== was) this.options.onSelect?.(this.selected());
  }

  /** The frames of each grid drawn: one grid per run, or one for the difference of both. */
  get shownFrames() {
    const difference = this.frames.length > 1 && this.view.pairing === "difference" && this.view.mode === "table";
    return difference ? [this.frames] : this.frames.map((frame) => [frame]);
  }

  /** The view, with the token in terms of one run's token table, and one scale for all. @param {Frame} frame @returns {View} */
  viewOf(frame) {
    const { token } = this.view;
    return { ...this.view, token: frame.data.row(token), name: this.textOf(token), runs: this.datas };
  }

  /** A token's text, from whichever run has it; empty for none. @param {number} token vocabulary index, or −1 */
  textOf(token) {
    const data = this.datas.find((one) => one.row(token) >= 0);
    return data ? data.header.tokens[data.row(token)] : "";
  }

  /** @param {boolean} [follow] bring the active cell into view */
  draw(follow = false) {
    const groups = this.shownFrames;
    this.current = Math.min(this.current, groups.length - 1);
    const pinned = new Set(this.pins.list.flatMap((pin) => (pin.layer === null ? [] : [keyOf({ ...pin, layer: pin.layer })])));
    const classes = ["lens-root", ZOOMS[this.view.zoom].className];
    if (this.view.transposed) classes.push("lens-transposed");
    if (this.frames.length > 1) classes.push("lens-comparing");
    if (groups.length > 1) classes.push("lens-beside");
    if (this.view.mode === "token") classes.push("lens-one-token");
    if (this.root.classList.contains("lens-below")) classes.push("lens-below");
    if (this.captions) this.captions[0].textContent = groups[0].length > 1 ? `${this.titleOf(0)} → ${this.titleOf(1)}` : this.titleOf(0);
    for (const caption of this.captions ?? []) caption.title = caption.textContent ?? "";
    this.root.className = classes.join(" ");
    this.panes?.forEach((pane, i) => (pane.hidden = i >= groups.length));
    this.models = groups.map((frames) => {
      const marks = { found: frames.map(({ data }) => data.row(this.find.token)), pinned };
      return gridModel(frames, frames.map((frame) => this.viewOf(frame)), marks, this.cell);
    });
    this.overview.show(this.models[0]);
    this.arrange();
    this.drawing = true;
    this.models.forEach((model, i) => {
      const grid = this.grids[i];
      if (this.captions) model.label = `${this.captions[i].textContent}: ${model.label}`;
      const kept = grid.begun ? [grid.el.scrollTop, grid.el.scrollLeft] : null;
      grid.setModel(model, model.fromCell(this.cell));
      if (follow) {
        // First the last candidate of the site: all of them are in view if there is room.
        const j = Math.max(...this.datas.map(({ k }) => k)) - 1;
        if (this.view.mode === "token") grid.reveal(model.fromCell({ ...this.cell, j }));
        grid.setActive(model.fromCell(this.cell));
      } else if (kept) [grid.el.scrollTop, grid.el.scrollLeft] = kept;
    });
    this.drawing = false;
    this.overview.mark(this.grids[0].window());
    this.legend.show(this.models[0].scale, {
      settles: this.view.mode === "table" && this.view.sites.includes("resid_post") && this.datas.some(hasOutput),
      difference: groups[0].length > 1,
      found: this.textOf(this.find.token),
    });
    this.toolbar.update(this.view, ZOOMS.length, this.cell, this.nextToken(), this.textOf(this.view.token));
    this.detailed(0);
  }

  /** Puts the details below the table where beside it they would take the room that the cells need for their numbers. */
  arrange() {
    const model = this.models?.[0];
    const width = this.body?.clientWidth;
    if (!model || !width) return;
    const [grid] = this.grids;
    const room = width - (this.overview.el.hidden ? 0 : STRIP) - (grid.el.offsetWidth - grid.el.clientWidth);
    const numbers = (/** @type {number} */ across) => fitted(model, across, grid.maxHeight()).colW >= NUMBER_WIDTH;
    // Below, the page is longer and may have got a scroll bar, for whose width alone they must not go back beside the table.
    const bar = this.root.classList.contains("lens-below") ? SCROLL_BAR : 0;
    this.root.classList.toggle("lens-below", width <= NARROW || (numbers(room + bar) && !numbers(room - BESIDE)));
  }

  nextToken() {
    const next = tokensAt(this.frames, "targets", this.labels.positions.indexOf(this.cell.position));
    return changeOf(next.map(({ data, row }) => data.header.tokens[row]));
  }

  /** Shows details of the hovered cell, or else of the active one. @param {number} i which grid */
  detailed(i) {
    const model = this.models?.[i];
    if (!model) return;
    const [r, c] = this.grids[i].lit();
    const cell = model.toCell(r, c);
    for (const detail of this.details) detail.show(cell);
    this.chartOf(cell);
  }

  /** @param {Cell} cell */
  chartOf(cell) {
    const { layers } = this.view;
    const lines = [];
    const followed = [];
    for (const [i, { data }] of this.frames.entries()) {
      const [site, position] = [data.siteAt.get(cell.site), data.positionAt.get(cell.position)];
      const own = layers.map((layer) => data.layerAt.get(layer) ?? -1);
      const target = position === undefined ? -1 : data.header.targets[position];
      if (site !== undefined && position !== undefined && target >= 0) {
        const name = data.header.tokens[target];
        const which = this.frames.length > 1 ? `${this.nameOf(i)}, ` : "";
        lines.push({ className: `lens-follow-${i}`, points: trajectory(data, site, own, position, target), label: name });
        followed.push({ run: i, name, what: `${which}next at ${cell.position}`.replace("-", "−") });
      }
      for (const pin of this.pins.list) {
        const token = data.row(pin.id);
        const at = data.positionAt.get(pin.position);
        const where = data.siteAt.get(pin.site);
        if (token < 0 || at === undefined || where === undefined) continue;
        lines.push({ className: `lens-line-${pin.colour}${i ? " lens-second" : ""}`, points: trajectory(data, where, own, at, token), label: pin.name });
      }
    }
    // One layer makes no lines: there is no chart, and nothing for its legend to name.
    const charted = layers.length > 1;
    if (this.lower) this.lower.hidden = !charted && !this.pins.list.length;
    this.pins.draw(charted ? followed : []);
    this.chart.draw(lines, layers, layers.indexOf(cell.layer));
  }

  /** @param {number} i which grid */
  moved(i) {
    const model = this.models?.[i];
    if (!model) return;
    this.cell = model.toCell(this.grids[i].active[0], this.grids[i].active[1]);
    this.grids.forEach((grid, other) => {
      if (other === i || !this.models?.[other]) return;
      grid.anchor = this.grids[i].anchor;
      grid.setActive(this.models[other].fromCell(this.cell), true);
    });
    this.detailed(i);
    this.options.onSelect?.(this.selected());
  }

  /** Scrolls the other run's grid along, and updates the overview. @param {number} i which grid */
  scrolled(i) {
    const [top, left] = this.grids[i].scroll;
    for (const [other, grid] of this.grids.entries()) {
      // While they are drawn one still has the cells of before, and each is brought to the active cell by itself.
      if (this.drawing || other === i || other >= (this.models?.length ?? 0)) continue;
      if (grid.scroll[0] !== top || grid.scroll[1] !== left) grid.el.scrollTo(left, top);
    }
    if (i === 0) this.overview.mark(this.grids[0].window());
  }

  /** @returns {Cell} */
  selected() {
    const { site, layer, position } = this.cell;
    return { site, layer, position };
  }

  /** Whether the last position is in view. */
  get atEnd() {
    const { el } = this.grids[0];
    return this.view.transposed ? el.scrollLeft + el.clientWidth >= el.scrollWidth - 2 : el.scrollTop + el.clientHeight >= el.scrollHeight - 2;
  }

  /** Updates the axes after a run has grown; a reader at its end stays at the end. */
  grown() {
    const { el } = this.grids[0];
    const { atEnd } = this;
    this.labels = labelsOf(this.datas);
    this.frames = this.datas.map((data) => new Frame(data, this.labels));
    this.details.forEach((detail, i) => (detail.frame = this.frames[i]));
    this.toolbar.size(this.labels, false);
    this.draw();
    if (atEnd && this.view.transposed) el.scrollLeft = el.scrollWidth;
    else if (atEnd) el.scrollTop = el.scrollHeight;
  }

  destroy() {
    this.endTheme?.();
    this.observer.disconnect();
    this.chart.destroy();
    for (const grid of this.grids) grid.destroy();
    this.root.remove();
  }
}
