import { changeOf, cut, isolated, unmarked } from "./format.js";
import { palette } from "./theme.js";

/**
 * Export from the view: text, tables, pictures.
 *
 * @typedef {import("./cells.js").Model} Model
 * @typedef {number[]} Range `[r0, c0, r1, c1]`, both ends included
 */

/** A field of a line, without characters that would end it and without the marks around tokens. @param {string} text */
const field = (text) => unmarked(text.replaceAll(/[\t\r\n]/g, " "));

/**
 * A field for a spreadsheet, which takes a leading quotation mark as the start of a quoted field, and would compute `=1+1`: a
 * leading apostrophe, the spreadsheet's mark for text, prevents that.
 * @param {string} text
 */
function quotedField(text) {
  if (text.startsWith('"')) return `"${field(text).replaceAll('"', '""')}"`;
  return (/^[=+\-@]./.test(text) ? "'" : "") + field(text);
}

/** A number for a spreadsheet; empty if unknown. @param {number} value */
const figure = (value) => (Number.isNaN(value) ? "" : String(Number(value.toPrecision(6))));

/** The tokens of a part of a table, one line per row. @param {Model} model @param {Range} range */
export function asText(model, [r0, c0, r1, c1]) {
  const lines = [];
  for (let r = r0; r <= r1; r++) {
    const row = [];
    for (let c = c0; c <= c1; c++) row.push(field(changeOf(model.text(r, c)[0])));
    lines.push(row.join("\t"));
  }
  return lines.join("\n");
}

/** The same with headers, each cell's token and number in two columns, for spreadsheets. @param {Model} model @param {Range} range */
export function asTable(model, [r0, c0, r1, c1]) {
  const head = [""];
  for (let c = c0; c <= c1; c++) head.push(quotedField(model.colText(c)), field(model.scale.label));
  const lines = [head.join("\t")];
  for (let r = r0; r <= r1; r++) {
    const row = [quotedField(model.rowText(r))];
    for (let c = c0; c <= c1; c++) row.push(quotedField(changeOf(model.text(r, c)[0])), figure(model.number(r, c)));
    lines.push(row.join("\t"));
  }
  return lines.join("\n");
}

/** One cell's candidates. @param {import("./data.js").Candidate[]} candidates */
export function candidatesTable(candidates) {
  const lines = candidates.map(({ shown, id, prob, share, logit }) => [quotedField(shown), id, ...[prob, share, logit].map(figure)].join("\t"));
  return ["token\tid\tprob\tprob_topk\tlogit", ...lines].join("\n");
}

const escaped = (/** @type {string} */ text) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");

/**
 * A cell's marks as on the screen: the underline, the bar where an answer settles, the frame of a change or of a token found.
 * @param {import("./cells.js").Mark[]} marks @param {number} x @param {number} y @param {number} wide @param {number} high
 * @param {import("./theme.js").Palette} colours
 */
function marked(marks, x, y, wide, high, { accent, muted, unsure }) {
  const frame = (/** @type {number} */ line, /** @type {string} */ colour) =>
    `<rect x="${x + line / 2}" y="${y + line / 2}" width="${wide - line}" height="${high - line}" fill="none" stroke="${colour}" stroke-width="${line}"/>`;
  const parts = [];
  if (marks.includes("hit")) parts.push(`<rect x="${x + 7}" y="${y + high - 4}" width="18" height="2" fill="${accent}"/>`);
  if (marks.includes("found")) parts.push(frame(2, `rgb(${unsure.join(",")})`));
  else if (marks.includes("changed")) parts.push(frame(1.5, muted));
  if (marks.includes("settles")) parts.push(`<rect x="${x}" y="${y}" width="3" height="${high}" fill="${accent}"/>`);
  return parts;
}

/** A part of a table as SVG. @param {Model} model @param {Range} range @param {HTMLElement} root @param {string} caption */
export function asSvg(model, [r0, c0, r1, c1], root, caption) {
  const colours = palette(root);
  const [wide, high, side, top] = [model.runs > 1 ? 196 : 104, 26, 128, 52];
  const room = 8 * model.runs; // characters
  const [rows, cols] = [r1 - r0 + 1, c1 - c0 + 1];
  const [width, height] = [side + cols * wide + 12, top + rows * high + 34];
  const text = (/** @type {number} */ x, /** @type {number} */ y, /** @type {string} */ body, more = "") =>
    `<text x="${x}" y="${y}" ${more}>${escaped(body)}</text>`;
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}">`,
    `<style>text{font:12px ${escaped(colours.mono)};fill:${colours.fg}}.h{fill:${colours.muted};font-size:11px}.n{font-size:10.5px}.t{font:600 13px system-ui,sans-serif}</style>`,
    `<rect width="100%" height="100%" fill="${colours.bg}"/>`,
    text(10, 20, cut(caption, Math.floor(width / 7)), 'class="t"'),
  ];
  for (let c = c0; c <= c1; c++) parts.push(text(side + (c - c0) * wide + 7, top - 8, cut(model.colText(c), 14), 'class="h"'));
  for (let r = r0; r <= r1; r++) {
    const y = top + (r - r0) * high;
    parts.push(text(side - 8, y + 17, cut(model.rowText(r), 16), 'class="h" text-anchor="end"'));
    for (let c = c0; c <= c1; c++) {
      const x = side + (c - c0) * wide;
      const [ramp, strength] = model.tint(r, c);
      const name = ramp === "more" && strength < 0 ? "less" : ramp;
      const depth = colours.depth[name] * Math.abs(strength || 0);
      const [tokens, number] = model.text(r, c);
      parts.push(
        `<rect x="${x}" y="${y}" width="${wide - 1}" height="${high - 1}" fill="rgb(${colours[name].join(",")})" fill-opacity="${depth.toFixed(3)}"/>`,
        ...marked(model.marks(r, c), x, y, wide - 1, high - 1, colours),
        text(x + 7, y + 17, isolated(changeOf(tokens.map((token) => cut(token, room / tokens.length))))),
        text(x + wide - 7, y + 17, number, 'class="n" text-anchor="end"'),
      );
    }
  }
  const { label, low, high: most } = model.scale;
  parts.push(text(10, height - 12, `shade: ${label}, ${low} to ${most}`, 'class="h"'), "</svg>");
  return parts.join("");
}

/** An SVG as a PNG image, at twice its size for sharp print. @param {string} svg @returns {Promise<Blob | null>} */
export async function asPng(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * image.width, 2 * image.height];
  canvas.getContext("2d")?.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

/** @param {Blob} blob @param {string} name */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** Copies text to the clipboard; without permission for the clipboard API, by the older `execCommand`. @param {string} text @returns {Promise<boolean>} */
export async function toClipboard(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    const before = document.activeElement;
    area.value = text;
    area.style.position = "fixed";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (before instanceof HTMLElement) before.focus();
    return done;
  }
}
