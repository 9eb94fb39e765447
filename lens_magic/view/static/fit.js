/** How large the cells of a table are, and how many of them fill the view. */

const OVERSCAN = 2;
const CELL_NODES = 900; // of at most 1,500 in total: rows, headers, details and charts need the rest
export const NUMBER_WIDTH = 84; // a column this wide fits five characters of a token and a number; narrower ones show the token only

/**
 * @param {Pick<import("./grid.js").GridModel, "rows" | "cols" | "rowHeight" | "colWidth" | "leastWidth" | "maxColWidth" |
 *   "headWidth" | "headHeight" | "nodesPerCell">} table
 * @param {number} width of the view @param {number} height the maximum
 * @returns {{rows: number, cols: number, rowH: number, colW: number, headW: number}} numbers to draw, and sizes in pixels
 */
export function fitted(table, width, height) {
  const room = width - table.headWidth;
  const fitting = Math.floor(room / table.cols);
  // Columns that nearly fit are narrowed so that none is cut off; below `leastWidth` as many are in view as have room for
  // their preferred width, and share what is left of it: at neither end of the table one is cut off.
  const inView = fitting >= table.leastWidth ? table.cols : Math.floor(room / table.colWidth);
  let colW = inView ? Math.min(Math.floor(room / inView), table.maxColWidth) : table.colWidth;
  let rowH = table.rowHeight;
  const fit = () => /** @type {[number, number]} */ ([
    Math.min(table.rows, Math.ceil((height - table.headHeight) / rowH) + 1 + OVERSCAN),
    Math.min(table.cols, Math.ceil(Math.max(room, colW) / colW) + 1 + OVERSCAN),
  ]);
  let [rows, cols] = fit();
  while (rows * cols * table.nodesPerCell > CELL_NODES) {
    rowH = Math.ceil(rowH * 1.08);
    colW = Math.ceil(colW * 1.08);
    [rows, cols] = fit();
  }
  const left = room - inView * colW; // fewer pixels than columns: for the row heads, or at the other end a bit of a column shows
  return { rows, cols, rowH, colW, headW: table.headWidth + (left > 0 && left < inView ? left : 0) };
}
