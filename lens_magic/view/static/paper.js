import { clamp, make } from "./dom.js";
import { grouped } from "./format.js";

/**
 * A whole table for paper, on which nothing can be scrolled.
 *
 * @typedef {import("./cells.js").Model} Model
 */

const WIDTH = 690; // pixels that upright A4 and letter paper have inside the usual margins
const HEAD = 130;
const LEAST = 62; // of a column: paper has its number below the token
const MOST_CELLS = 12_000; // some fifty pages

/** Some columns of all rows; the head is repeated on every page. @param {Model} model @param {number[]} rows @param {number[]} cols */
function block(model, rows, cols) {
  const table = make("table");
  const top = make("thead");
  const head = make("tr");
  head.append(make("th", "", model.corner.down), ...cols.map((c) => make("th", "", model.colText(c))));
  top.append(head);
  const body = make("tbody");
  for (const r of rows) {
    const row = make("tr");
    row.append(make("th", "", model.rowText(r)));
    for (const c of cols) {
      const place = make("td");
      const cell = model.makeCell();
      model.paintCell(cell, r, c);
      place.append(cell);
      row.append(place);
    }
    body.append(row);
  }
  table.append(top, body);
  return table;
}

/**
 * Columns for which there is no room beside the others go below them; of too many rows those from `first` on are there.
 * @param {Model} model @param {number} first
 */
export function onPaper(model, first) {
  const count = clamp(Math.floor(MOST_CELLS / model.cols), 1, model.rows);
  const from = clamp(first, 0, model.rows - count);
  const rows = Array.from({ length: count }, (_, i) => from + i);
  const blocks = Math.ceil(model.cols / Math.floor((WIDTH - HEAD) / Math.max(LEAST, model.leastWidth)));
  const each = Math.ceil(model.cols / blocks);
  const el = make("div", "lens-paper");
  el.append(make("p", "lens-caption", model.label));
  if (count < model.rows) {
    const span = `${model.rowText(from)} to ${model.rowText(from + count - 1)}`;
    el.append(make("p", "", `${grouped(count)} of ${grouped(model.rows)} rows (${span}): ${grouped(MOST_CELLS)} cells are printed at most.`));
  }
  for (let c = 0; c < model.cols; c += each) {
    const cols = Array.from({ length: Math.min(each, model.cols - c) }, (_, i) => c + i);
    el.append(block(model, rows, cols));
  }
  return el;
}
