import { clamp, make } from "./dom.js";
import { fitted, NUMBER_WIDTH } from "./fit.js";
import { destination } from "./keys.js";

/**
 * A table of any size in which only the cells in view have elements: rows and cells are recycled while scrolling. It knows
 * rows and columns by index only, not what they mean.
 *
 * @typedef {{
 *   rows: number, cols: number, rowHeight: number, colWidth: number, leastWidth: number, maxColWidth: number,
 *   headWidth: number, headHeight: number, nodesPerCell: number, label: string,
 *   corner: {down: string, across: string, stacked: boolean},
 *   makeCell: () => HTMLElement, paintCell: (el: HTMLElement, row: number, col: number) => void,
 *   paintRowHead: (el: HTMLElement, row: number) => void, paintColHead: (el: HTMLElement, col: number) => void,
 *   describe: (row: number, col: number) => string,
 * }} GridModel
 * @typedef {{el: HTMLElement, row: number, col: number}} DrawnCell
 * @typedef {{el: HTMLElement, head: HTMLElement, cells: DrawnCell[], index: number}} DrawnRow
 * @typedef {{onHover: () => void, onMove: () => void, onOpen: () => void, onScroll: () => void,
 *   onKey: (event: KeyboardEvent) => boolean}} GridCallbacks `onKey` returns whether it handled the key
 */

export class VirtualGrid {
  /** @param {GridCallbacks} callbacks */
  constructor(callbacks) {
    this.callbacks = callbacks;
    // Random, not a counter: a notebook loads this module again for every widget.
    this.id = `lens-grid-${Math.random().toString(36).slice(2)}`;
    /** @type {number[]} */
    this.active = [0, 0];
    /** The other corner of the selection. @type {number[]} */
    this.anchor = [0, 0];
    /** @type {number[] | null} */
    this.hover = null;
    /** @type {{clientX: number, clientY: number} | null} */
    this.pointer = null;
    this.size = [0, 0];
    this.scroll = [0, 0];
    this.rowH = 0;
    this.colW = 0;
    this.headW = 0;
    this.frame = 0;
    this.stale = false;
    this.owed = false; // whether to rebuild for a model that was set while this was hidden
    this.begun = false; // whether it has been in view, at the active row
    /** @type {DrawnRow[]} */
    this.pool = [];
    /** @type {{el: HTMLElement, index: number}[]} */
    this.heads = [];
    this.el = make("div", "lens-scroll");
    this.el.setAttribute("role", "grid");
    this.el.setAttribute("aria-multiselectable", "true");
    this.el.tabIndex = 0;
    this.canvas = make("div", "lens-canvas");
    this.canvas.setAttribute("role", "presentation");
    this.el.append(this.canvas);
    // One frame later, so that the changes that layout() makes are not reported as a ResizeObserver loop.
    this.observer = new ResizeObserver(() => {
      const [width, height] = this.size;
      if (this.el.clientWidth === width && this.el.clientHeight === height) return;
      this.stale = true;
      this.schedule();
    });
    this.observer.observe(this.el);
    this.listen();
  }

  listen() {
    this.el.addEventListener("focus", () => {
      if (this.el.matches(":focus-visible")) this.setActive(this.active, true); // it may have been scrolled away, or never been in view
    });
    this.el.addEventListener("scroll", () => this.schedule(), { passive: true });
    this.el.addEventListener("pointermove", (event) => this.point(event.pointerType === "touch" ? null : event));
    this.el.addEventListener("pointerleave", () => this.point(null));
    this.el.addEventListener("pointerdown", (event) => {
      const cell = event.button === 0 && event.pointerType === "mouse" ? this.cellAt(event) : null;
      if (!cell) return;
      this.el.setPointerCapture(event.pointerId); // of a drag that begins here, and of no other
      this.moveTo(cell, event.shiftKey);
    });
    this.el.addEventListener("click", (event) => {
      const cell = this.cellAt(event);
      if (cell && String(cell) !== String(this.active)) this.moveTo(cell, event.shiftKey);
    });
    this.el.addEventListener("dblclick", (event) => {
      if (this.cellAt(event)) this.callbacks.onOpen();
    });
    this.el.addEventListener("keydown", (event) => this.key(event));
  }

  /** Shows a table. @param {GridModel} model @param {number[]} active */
  setModel(model, active) {
    // With another shade or more rows it is the same table, and the selection stays.
    const same = this.model?.label === model.label && this.model.cols === model.cols && this.model.rows <= model.rows;
    if (!same || String(active) !== String(this.active)) this.anchor = active;
    this.model = model;
    this.active = active;
    this.hover = null;
    this.el.setAttribute("aria-label", model.label);
    this.el.setAttribute("aria-rowcount", String(model.rows + 1));
    this.el.setAttribute("aria-colcount", String(model.cols + 1));
    this.layout(true);
  }

  /** Measures sizes, then builds as many rows and cells as fill the view. */
  layout(rebuild = false) {
    this.stale = false;
    this.owed ||= rebuild;
    if (!this.el.clientWidth) this.size = [0, 0]; // hidden; when visible again, the observer sees a new size
    if (!this.model || !this.el.clientWidth) return;
    const [rows, cols, changed] = this.measure();
    if (changed || this.owed) this.build(rows, cols);
    this.owed = false;
    const { rows: down, cols: across } = this.model;
    if (!this.begun) this.centre((this.active[0] + 0.5) / down, (this.active[1] + 0.5) / across); // the cell whose details are shown
    this.begun = true;
    this.render();
  }

  /** Number of rows and columns to draw, and whether these or their size have changed. @returns {[number, number, boolean]} */
  measure(again = true) {
    const m = /** @type {GridModel} */ (this.model);
    const width = this.el.clientWidth;
    const { rows, cols, ...sizes } = fitted(m, width, this.maxHeight());
    const { rowH, colW, headW } = sizes;
    const resized = colW !== this.colW || rowH !== this.rowH || headW !== this.headW;
    const changed = resized || rows !== this.pool.length || cols !== this.heads.length;
    Object.assign(this, sizes);
    this.el.classList.toggle("lens-numbers", colW >= NUMBER_WIDTH);
    this.canvas.style.width = `${headW + m.cols * colW}px`;
    this.canvas.style.height = `${m.headHeight + m.rows * rowH}px`;
    const styles = { "head-w": headW, "head-h": m.headHeight, "col-w": colW, "row-h": rowH };
    for (const [name, px] of Object.entries(styles)) this.el.style.setProperty(`--lens-${name}`, `${px}px`);
    this.size = [this.el.clientWidth, this.el.clientHeight];
    // A scroll bar that has just appeared or disappeared changes the width left for columns.
    if (again && this.size[0] !== width) {
      const [r, c] = this.measure(false);
      return [r, c, true];
    }
    return [rows, cols, changed];
  }

  /** The maximum height that the style sheet allows; the actual height follows from the rows. */
  maxHeight() {
    const limit = parseFloat(getComputedStyle(this.el).maxHeight);
    return Number.isFinite(limit) ? limit : 480;
  }

  /** @param {number} rows @param {number} cols */
  build(rows, cols) {
    const headRow = make("div", "lens-headrow");
    headRow.setAttribute("role", "row");
    headRow.setAttribute("aria-rowindex", "1");
    const { down, across, stacked } = /** @type {GridModel} */ (this.model).corner;
    const corner = this.child("lens-corner", "columnheader");
    corner.setAttribute("aria-colindex", "1");
    corner.classList.toggle("lens-stacked", stacked);
    corner.append(make("span", "", `${down} ↓`), make("span", "", `${across} →`));
    corner.title = `${down} down, ${across} across`;
    this.heads = Array.from({ length: cols }, () => ({ el: this.child("lens-colhead", "columnheader"), index: -1 }));
    headRow.append(corner, ...this.heads.map((h) => h.el));
    this.pool = Array.from({ length: rows }, () => this.buildRow(cols));
    this.canvas.replaceChildren(headRow, ...this.pool.map((row) => row.el));
  }

  /** @param {number} cols @returns {DrawnRow} */
  buildRow(cols) {
    const el = this.child("lens-row", "row");
    const head = this.child("lens-rowhead", "rowheader");
    head.setAttribute("aria-colindex", "1");
    const cells = Array.from({ length: cols }, () => {
      const cell = /** @type {GridModel} */ (this.model).makeCell();
      cell.setAttribute("role", "gridcell");
      return { el: cell, row: -1, col: -1 };
    });
    el.append(head, ...cells.map((c) => c.el));
    return { el, head, cells, index: -1 };
  }

  /** @param {string} className @param {string} role */
  child(className, role) {
    const el = make("div", className);
    el.setAttribute("role", role);
    return el;
  }

  schedule() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (this.stale) this.layout();
      if (this.pointer) this.setHover(this.cellAt(this.pointer));
      this.render();
    });
  }

  /** Updates the recycled elements to the scroll offsets; elements that are right already stay untouched. */
  render() {
    const m = this.model;
    if (!m || !this.pool.length) return;
    // Read before writing: reading a scroll offset after a change makes the browser lay out the whole page again.
    this.scroll = [this.el.scrollTop, this.el.scrollLeft];
    const [top, left] = this.scroll;
    const row0 = clamp(Math.floor(top / this.rowH) - 1, 0, m.rows - this.pool.length);
    const col0 = clamp(Math.floor(left / this.colW) - 1, 0, m.cols - this.heads.length);
    for (let c = col0; c < col0 + this.heads.length; c++) this.placeHead(m, this.heads[c % this.heads.length], c);
    for (let r = row0; r < row0 + this.pool.length; r++) this.placeRow(m, this.pool[r % this.pool.length], r, col0);
    if (this.cellElement(this.active)) this.el.setAttribute("aria-activedescendant", this.activeId);
    else this.el.removeAttribute("aria-activedescendant");
    this.callbacks.onScroll();
  }

  /** @param {GridModel} m @param {{el: HTMLElement, index: number}} head @param {number} c */
  placeHead(m, head, c) {
    if (head.index === c) return;
    head.index = c;
    head.el.style.left = `${this.headW + c * this.colW}px`;
    head.el.setAttribute("aria-colindex", String(c + 2));
    m.paintColHead(head.el, c);
    head.el.classList.toggle("lens-lit", c === this.lit()[1]);
  }

  /** @param {GridModel} m @param {DrawnRow} row @param {number} r @param {number} col0 */
  placeRow(m, row, r, col0) {
    if (row.index !== r) {
      row.index = r;
      row.el.style.top = `${m.headHeight + r * this.rowH}px`;
      row.el.setAttribute("aria-rowindex", String(r + 2));
      m.paintRowHead(row.head, r);
      row.head.classList.toggle("lens-lit", r === this.lit()[0]);
    }
    const n = row.cells.length;
    for (let c = col0; c < col0 + n; c++) {
      const cell = row.cells[c % n];
      if (cell.row !== r || cell.col !== c) this.paint(m, cell, r, c);
    }
  }

  /** @param {GridModel} m @param {DrawnCell} cell @param {number} r @param {number} c */
  paint(m, cell, r, c) {
    if (cell.col !== c) {
      cell.col = c;
      cell.el.style.left = `${this.headW + c * this.colW}px`;
      cell.el.setAttribute("aria-colindex", String(c + 2));
    }
    cell.row = r;
    m.paintCell(cell.el, r, c);
    this.mark(cell.el, r, c);
  }

  /** Sets the classes and ARIA states that depend on the pointer and the selection. @param {HTMLElement} el @param {number} r @param {number} c */
  mark(el, r, c) {
    const active = r === this.active[0] && c === this.active[1];
    const range = this.range();
    const selected = active || (r >= range[0] && r <= range[2] && c >= range[1] && c <= range[3]);
    const { hover } = this;
    el.classList.toggle("lens-active", active);
    el.classList.toggle("lens-range", selected && !active);
    el.classList.toggle("lens-hover", hover !== null && r === hover[0] && c === hover[1]);
    if (selected) el.setAttribute("aria-selected", "true");
    else el.removeAttribute("aria-selected");
    if (active) {
      el.id = this.activeId;
      el.setAttribute("aria-label", /** @type {GridModel} */ (this.model).describe(r, c));
    } else if (el.id) {
      el.removeAttribute("id");
      el.removeAttribute("aria-label");
    }
  }

  /** The active cell's id, another for each cell: a screen reader speaks when aria-activedescendant changes. */
  get activeId() {
    return `${this.id}-${this.active.join("-")}-active`;
  }

  /** First and last row and column of the selection: `[r0, c0, r1, c1]`. */
  range() {
    const [[a, b], [c, d]] = [this.active, this.anchor];
    return [Math.min(a, c), Math.min(b, d), Math.max(a, c), Math.max(b, d)];
  }

  /** First row and column in view, and how many are, in cells and fractions of cells: `[row, col, rows, cols]`. */
  window() {
    const m = /** @type {GridModel} */ (this.model);
    const [width, height] = [this.size[0] - this.headW, this.size[1] - m.headHeight];
    return [this.scroll[0] / this.rowH, this.scroll[1] / this.colW, height / this.rowH, width / this.colW];
  }

  /** The element of a cell if it is drawn, else null. @param {number[]} cell */
  cellElement([r, c]) {
    const row = this.pool[r % this.pool.length];
    if (row?.index !== r) return null;
    const cell = row.cells[c % row.cells.length];
    return cell.col === c ? cell.el : null;
  }

  lit() {
    return this.hover ?? this.active;
  }

  /** Updates the marks of all drawn cells. */
  remark() {
    const [r, c] = this.lit();
    for (const row of this.pool) {
      row.head.classList.toggle("lens-lit", row.index === r);
      for (const cell of row.cells) if (cell.row >= 0) this.mark(cell.el, cell.row, cell.col);
    }
    for (const head of this.heads) head.el.classList.toggle("lens-lit", head.index === c);
  }

  /** @param {{clientX: number, clientY: number}} point @returns {number[] | null} */
  cellAt({ clientX, clientY }) {
    const m = this.model;
    if (!m) return null;
    const box = this.el.getBoundingClientRect();
    const x = clientX - box.left - this.el.clientLeft - this.headW;
    const y = clientY - box.top - this.el.clientTop - m.headHeight;
    if (x < 0 || y < 0 || x > this.size[0] - this.headW || y > this.size[1] - m.headHeight) return null;
    const cell = [Math.floor((y + this.el.scrollTop) / this.rowH), Math.floor((x + this.el.scrollLeft) / this.colW)];
    return cell[0] < m.rows && cell[1] < m.cols ? cell : null;
  }

  /** @param {PointerEvent | null} event */
  point(event) {
    this.pointer = event && { clientX: event.clientX, clientY: event.clientY };
    const cell = event && this.cellAt(event);
    if (event && cell && this.el.hasPointerCapture(event.pointerId) && String(cell) !== String(this.active)) this.moveTo(cell, true);
    this.setHover(cell);
  }

  /** @param {number[] | null} cell */
  setHover(cell) {
    if (String(cell) === String(this.hover)) return;
    this.hover = cell;
    this.remark();
    this.callbacks.onHover();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const m = this.model;
    if (!m) return;
    const page = Math.max(1, Math.floor((this.size[1] - m.headHeight) / this.rowH) - 1);
    const to = destination(event, { active: this.active, rows: m.rows, cols: m.cols, page });
    if (!to && !this.callbacks.onKey(event)) return;
    event.preventDefault();
    event.stopPropagation();
    if (!to) return;
    this.setHover(null);
    this.moveTo(to, event.shiftKey);
  }

  /** Makes a cell active, brings it into view, and reports it. @param {number[]} cell @param {boolean} [extend] the selection */
  moveTo(cell, extend = false) {
    this.setActive(cell, extend);
    this.callbacks.onMove();
  }

  /** @param {number[]} cell @param {boolean} [extend] */
  setActive(cell, extend = false) {
    this.active = cell;
    if (!extend) this.anchor = cell;
    this.pointer = null; // the next scroll must not count as a hover of a resting pointer
    this.reveal(cell);
    this.remark(); // before aria-activedescendant names the cell, it has its id
    this.render();
  }

  /** @param {number[]} cell */
  reveal([r, c]) {
    const m = this.model;
    if (!m || !this.rowH) return;
    if (this.el.clientWidth !== this.size[0]) this.layout(); // the overview may just have appeared beside it
    const [top, left] = [r * this.rowH, c * this.colW];
    this.el.scrollTop = clamp(this.el.scrollTop, top + this.rowH - this.size[1] + m.headHeight, top);
    this.el.scrollLeft = clamp(this.el.scrollLeft, left + this.colW - this.size[0] + this.headW, left);
  }

  /** Centres the view on a place of the table, given as fractions of it. @param {number} down @param {number} across */
  centre(down, across) {
    const m = this.model;
    if (!m) return;
    this.el.scrollTop = down * m.rows * this.rowH - (this.size[1] - m.headHeight) / 2;
    this.el.scrollLeft = across * m.cols * this.colW - (this.size[0] - this.headW) / 2;
  }

  destroy() {
    cancelAnimationFrame(this.frame);
    this.observer.disconnect();
    this.el.remove();
  }
}
