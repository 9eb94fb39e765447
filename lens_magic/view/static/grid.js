/**
 * A table of any size of which only the cells in view exist: rows and cells are recycled while scrolling. It knows
 * rows and columns by index and nothing about what they mean.
 *
 * @typedef {{
 *   rows: number, cols: number, rowHeight: number, colWidth: number, maxColWidth: number, headWidth: number,
 *   headHeight: number, nodesPerCell: number, label: string,
 *   makeCell: () => HTMLElement, paintCell: (el: HTMLElement, row: number, col: number) => void,
 *   paintRowHead: (el: HTMLElement, row: number) => void, paintColHead: (el: HTMLElement, col: number) => void,
 *   paintCorner: (el: HTMLElement) => void, describe: (row: number, col: number) => string,
 * }} GridModel
 */

const OVERSCAN = 2;
const SQUEEZE = 0.85; // of a column's least width
const CELL_NODES = 1000; // of at most 1,500 in all: rows, headers and the details need the rest

export function make(tag, className, text) {
  const el = document.createElement(tag);
  if (className) el.className = className;
  if (text !== undefined) el.textContent = text;
  return el;
}

const clamp = (x, low, high) => Math.max(low, Math.min(high, x));

export class VirtualGrid {
  /** @param {{onHover: (cell: number[] | null) => void, onMove: (cell: number[]) => void}} callbacks */
  constructor(callbacks) {
    this.callbacks = callbacks;
    // Random, not counted: a notebook loads this module anew for every widget.
    this.id = `lens-grid-${Math.random().toString(36).slice(2)}`;
    this.active = [0, 0];
    this.hover = null;
    this.pointer = null;
    this.size = [0, 0];
    this.frame = 0;
    this.stale = false;
    this.el = make("div", "lens-scroll");
    this.el.setAttribute("role", "grid");
    this.el.tabIndex = 0;
    this.canvas = make("div", "lens-canvas");
    this.canvas.setAttribute("role", "presentation");
    this.el.append(this.canvas);
    this.listen();
  }

  listen() {
    this.el.addEventListener("scroll", () => this.schedule(), { passive: true });
    this.el.addEventListener("pointermove", (e) => this.point(e.pointerType === "touch" ? null : e));
    this.el.addEventListener("pointerleave", () => this.point(null));
    this.el.addEventListener("click", (e) => {
      const cell = this.cellAt(e);
      if (cell) this.moveTo(cell);
    });
    this.el.addEventListener("keydown", (e) => this.key(e));
    // A frame later, so that what layout() changes is not reported as a loop of the observer.
    this.observer = new ResizeObserver(() => {
      const [width, height] = this.size;
      if (this.el.clientWidth === width && this.el.clientHeight === height) return;
      this.stale = true;
      this.schedule();
    });
    this.observer.observe(this.el);
  }

  /** Shows another table, keeping the active cell where there still is one. @param {GridModel} model */
  setModel(model, active) {
    this.model = model;
    this.active = active;
    this.hover = null;
    this.el.setAttribute("aria-label", model.label);
    this.el.setAttribute("aria-rowcount", model.rows + 1);
    this.el.setAttribute("aria-colcount", model.cols + 1);
    this.layout(true);
  }

  /** Sizes, then as many recycled rows and cells as fill the view. */
  layout(rebuild = false) {
    this.stale = false;
    if (!this.model || !this.el.clientWidth) return;
    const [rows, cols, changed] = this.measure();
    if (changed || rebuild) this.build(rows, cols);
    this.render();
  }

  /** How many rows and columns to draw, and whether that or their size is new. */
  measure(again = true) {
    const m = this.model;
    const width = this.el.clientWidth;
    const room = width - m.headWidth;
    const fitting = Math.floor(room / m.cols);
    // Columns that nearly fit are squeezed a little, so that the last one is not cut.
    const least = fitting >= SQUEEZE * m.colWidth ? fitting : m.colWidth;
    let colW = clamp(fitting, least, m.maxColWidth);
    let rowH = m.rowHeight;
    const fit = () => [
      Math.min(m.rows, Math.ceil((this.maxHeight() - m.headHeight) / rowH) + 1 + OVERSCAN),
      Math.min(m.cols, Math.ceil(Math.max(room, colW) / colW) + 1 + OVERSCAN),
    ];
    let [rows, cols] = fit();
    while (rows * cols * m.nodesPerCell > CELL_NODES) {
      rowH = Math.ceil(rowH * 1.08);
      colW = Math.ceil(colW * 1.08);
      [rows, cols] = fit();
    }
    const changed = colW !== this.colW || rowH !== this.rowH || rows !== this.pool?.length || cols !== this.heads.length;
    Object.assign(this, { rowH, colW });
    this.canvas.style.width = `${m.headWidth + m.cols * colW}px`;
    this.canvas.style.height = `${m.headHeight + m.rows * rowH}px`;
    const sizes = { "head-w": m.headWidth, "head-h": m.headHeight, "col-w": colW, "row-h": rowH };
    for (const [name, px] of Object.entries(sizes)) this.el.style.setProperty(`--lens-${name}`, `${px}px`);
    this.size = [this.el.clientWidth, this.el.clientHeight];
    // A scroll bar that has just come or gone takes its width from the columns.
    if (again && this.size[0] !== width) return [...this.measure(false).slice(0, 2), true];
    return [rows, cols, changed];
  }

  /** The greatest height the style sheet lets the grid take; its own height follows from the rows. */
  maxHeight() {
    const limit = parseFloat(getComputedStyle(this.el).maxHeight);
    return Number.isFinite(limit) ? limit : 480;
  }

  build(rows, cols) {
    const headRow = make("div", "lens-headrow");
    headRow.setAttribute("role", "row");
    headRow.setAttribute("aria-rowindex", 1);
    const corner = make("div", "lens-corner");
    corner.setAttribute("role", "columnheader");
    corner.setAttribute("aria-colindex", 1);
    this.model.paintCorner(corner);
    this.heads = Array.from({ length: cols }, () => ({ el: this.child("lens-colhead", "columnheader"), index: -1 }));
    headRow.append(corner, ...this.heads.map((h) => h.el));
    this.pool = Array.from({ length: rows }, () => this.buildRow(cols));
    this.canvas.replaceChildren(headRow, ...this.pool.map((row) => row.el));
  }

  buildRow(cols) {
    const el = make("div", "lens-row");
    el.setAttribute("role", "row");
    const head = this.child("lens-rowhead", "rowheader");
    head.setAttribute("aria-colindex", 1);
    const cells = Array.from({ length: cols }, () => {
      const cell = this.model.makeCell();
      cell.setAttribute("role", "gridcell");
      return { el: cell, row: -1, col: -1 };
    });
    el.append(head, ...cells.map((c) => c.el));
    return { el, head, cells, index: -1 };
  }

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

  /** Brings the recycled elements to what the scroll offsets show; elements already right are left alone. */
  render() {
    const m = this.model;
    if (!m || !this.pool) return;
    const row0 = clamp(Math.floor(this.el.scrollTop / this.rowH) - 1, 0, m.rows - this.pool.length);
    const col0 = clamp(Math.floor(this.el.scrollLeft / this.colW) - 1, 0, m.cols - this.heads.length);
    for (let c = col0; c < col0 + this.heads.length; c++) this.placeHead(this.heads[c % this.heads.length], c);
    for (let r = row0; r < row0 + this.pool.length; r++) this.placeRow(this.pool[r % this.pool.length], r, col0);
    if (this.cellElement(this.active)) this.el.setAttribute("aria-activedescendant", `${this.id}-active`);
    else this.el.removeAttribute("aria-activedescendant");
  }

  placeHead(head, c) {
    if (head.index === c) return;
    head.index = c;
    head.el.style.left = `${this.model.headWidth + c * this.colW}px`;
    head.el.setAttribute("aria-colindex", c + 2);
    this.model.paintColHead(head.el, c);
    head.el.classList.toggle("lens-lit", c === this.lit()[1]);
  }

  placeRow(row, r, col0) {
    if (row.index !== r) {
      row.index = r;
      row.el.style.top = `${this.model.headHeight + r * this.rowH}px`;
      row.el.setAttribute("aria-rowindex", r + 2);
      this.model.paintRowHead(row.head, r);
      row.head.classList.toggle("lens-lit", r === this.lit()[0]);
    }
    const n = row.cells.length;
    for (let c = col0; c < col0 + n; c++) {
      const cell = row.cells[c % n];
      if (cell.row !== r || cell.col !== c) this.paint(cell, r, c);
    }
  }

  paint(cell, r, c) {
    if (cell.col !== c) {
      cell.col = c;
      cell.el.style.left = `${this.model.headWidth + c * this.colW}px`;
      cell.el.setAttribute("aria-colindex", c + 2);
    }
    cell.row = r;
    this.model.paintCell(cell.el, r, c);
    this.mark(cell.el, r, c);
  }

  /** The classes and ARIA states that depend on the pointer and the focus. */
  mark(el, r, c) {
    const active = r === this.active[0] && c === this.active[1];
    el.classList.toggle("lens-active", active);
    el.classList.toggle("lens-hover", Boolean(this.hover) && r === this.hover[0] && c === this.hover[1]);
    if (active) {
      el.id = `${this.id}-active`; // the only one: aria-activedescendant names it
      el.setAttribute("aria-selected", "true");
      el.setAttribute("aria-label", this.model.describe(r, c));
    } else if (el.id) {
      el.removeAttribute("id");
      el.removeAttribute("aria-selected");
      el.removeAttribute("aria-label");
    }
  }

  /** The element of a cell, if it is drawn. */
  cellElement([r, c]) {
    const row = this.pool?.[r % this.pool.length];
    if (row?.index !== r) return null;
    const cell = row.cells[c % row.cells.length];
    return cell.col === c ? cell.el : null;
  }

  lit() {
    return this.hover ?? this.active;
  }

  /** Moves the marks from wherever they were to the present active and hovered cells. */
  remark(before) {
    for (const cell of [...before, this.active, this.hover]) {
      const el = cell && this.cellElement(cell);
      if (el) this.mark(el, ...cell);
    }
    const [r, c] = this.lit();
    for (const row of this.pool ?? []) row.head.classList.toggle("lens-lit", row.index === r);
    for (const head of this.heads ?? []) head.el.classList.toggle("lens-lit", head.index === c);
  }

  /** Draws everything again: the same table with other contents. */
  repaint() {
    for (const row of this.pool ?? []) for (const cell of row.cells) cell.row = -1;
    this.render();
  }

  cellAt({ clientX, clientY }) {
    const box = this.el.getBoundingClientRect();
    const x = clientX - box.left - this.el.clientLeft - this.model.headWidth;
    const y = clientY - box.top - this.el.clientTop - this.model.headHeight;
    if (x < 0 || y < 0 || x > this.size[0] - this.model.headWidth) return null;
    const cell = [Math.floor((y + this.el.scrollTop) / this.rowH), Math.floor((x + this.el.scrollLeft) / this.colW)];
    return cell[0] < this.model.rows && cell[1] < this.model.cols ? cell : null;
  }

  point(event) {
    this.pointer = event && { clientX: event.clientX, clientY: event.clientY };
    this.setHover(event && this.cellAt(event));
  }

  setHover(cell) {
    if (String(cell) === String(this.hover)) return;
    const before = this.hover;
    this.hover = cell;
    this.remark([before]);
    this.callbacks.onHover(cell);
  }

  key(event) {
    const page = Math.max(1, Math.floor((this.size[1] - this.model.headHeight) / this.rowH) - 1);
    const [r, c] = this.active;
    const ends = event.ctrlKey || event.metaKey;
    const moves = {
      ArrowUp: [r - 1, c],
      ArrowDown: [r + 1, c],
      ArrowLeft: [r, c - 1],
      ArrowRight: [r, c + 1],
      PageUp: [r - page, c],
      PageDown: [r + page, c],
      Home: [ends ? 0 : r, 0],
      End: [ends ? this.model.rows - 1 : r, this.model.cols - 1],
    };
    const to = event.altKey ? null : moves[event.key];
    if (!to) return;
    event.preventDefault();
    event.stopPropagation();
    this.setHover(null);
    this.moveTo([clamp(to[0], 0, this.model.rows - 1), clamp(to[1], 0, this.model.cols - 1)]);
  }

  /** Makes a cell the active one, in view, and tells so. */
  moveTo(cell) {
    this.setActive(cell);
    this.callbacks.onMove(cell);
  }

  setActive(cell) {
    const before = this.active;
    this.active = cell;
    this.pointer = null; // a pointer at rest must not take the next scroll for a hover
    this.reveal(cell);
    this.render();
    this.remark([before]);
  }

  reveal([r, c]) {
    if (!this.rowH) return;
    const height = this.size[1] - this.model.headHeight;
    const width = this.size[0] - this.model.headWidth;
    const top = r * this.rowH;
    const left = c * this.colW;
    this.el.scrollTop = clamp(this.el.scrollTop, top + this.rowH - height, top);
    this.el.scrollLeft = clamp(this.el.scrollLeft, left + this.colW - width, left);
  }

  destroy() {
    cancelAnimationFrame(this.frame);
    this.observer.disconnect();
    this.el.remove();
  }
}
