/** Formatting of numbers and token text. */

const MINUS = "−";

/** A probability in percent, however small, with up to three significant digits; never rounded up to certainty. @param {number} p */
export function percent(p) {
  if (Number.isNaN(p)) return "–";
  if (p >= 0.9995) return ">99.9%";
  if (p >= 0.1) return `${(100 * p).toFixed(1)}%`;
  if (p >= 0.001) return `${(100 * p).toFixed(2)}%`;
  if (p >= 0.00001) return `${(100 * p).toFixed(3)}%`;
  return p > 1.3e-14 ? `${(100 * p).toExponential(1)}%`.replace("-", MINUS) : `<1e${MINUS}12%`;
}

/** The same in at most four characters, for the inside of a cell: it never says 1 either. @param {number} p */
export function brief(p) {
  if (Number.isNaN(p)) return "–";
  if (p >= 0.995) return ".99+";
  if (p >= 0.005) return p.toFixed(2).slice(1);
  return p >= 0.001 ? p.toFixed(3).slice(1) : "≈0";
}

/** A number of nats in at most four characters. @param {number} x */
export function nats(x) {
  if (Number.isNaN(x)) return "–";
  return x >= 99.5 ? x.toFixed(0) : x.toFixed(x >= 9.95 ? 0 : x >= 0.095 ? 1 : 2);
}

/** A count in at most four characters. @param {number} n */
export function count(n) {
  if (n < 0 || Number.isNaN(n)) return "–";
  if (n < 10000) return String(n);
  return n < 999500 ? `${Math.round(n / 1000)}k` : `${(n / 1e6).toFixed(n < 9.95e6 ? 1 : 0)}M`;
}

/** @param {number} x @param {number} digits */
export function signed(x, digits) {
  if (Number.isNaN(x)) return "–";
  return x.toFixed(digits).replace("-", MINUS);
}

/** A difference, always with its sign. @param {number} x @param {(magnitude: number) => string} format */
export function delta(x, format) {
  if (Number.isNaN(x)) return "–";
  const magnitude = format(Math.abs(x));
  if (x === 0 || magnitude.startsWith("≈") || Number(magnitude) === 0) return "0";
  return (x > 0 ? "+" : MINUS) + magnitude;
}

/** @param {number} n */
export function integer(n) {
  return String(n).replace("-", MINUS);
}

/** A count with commas; the browser's own number formatting is slow to start. @param {number} n */
export function grouped(n) {
  return String(n).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** @param {number} n @param {boolean} exact */
export function rank(n, exact) {
  if (n < 0) return "–";
  return (exact || n < 64 ? "" : "≈ ") + grouped(n);
}

/** @param {number} n @param {string} noun */
export function plural(n, noun) {
  return `${grouped(n)} ${noun}${n === 1 ? "" : "s"}`;
}

/** Names of models: of folders their last parts, unless that makes two the same. @param {string[]} models */
export function modelNames(models) {
  const isPath = /^[~./\\]|[/\\].*[/\\]/;
  const short = models.map((model) => (isPath.test(model) ? model.split(/[/\\]/).filter(Boolean).pop() ?? model : model));
  return new Set(short).size < new Set(models).size ? models : short;
}

/** A token's actual text in quotes, with unprintable characters escaped. @param {string} raw */
export function quoted(raw) {
  const escape = (/** @type {string} */ c) => `\\u{${c.codePointAt(0)?.toString(16)}}`;
  return JSON.stringify(raw).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, escape).replace(/(?! )\p{Zs}/gu, escape);
}

const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/** A token among other text: from right to left, between marks that keep the direction of either from the other. @param {string} token */
export const isolated = (token) => (RIGHT_TO_LEFT.test(token) ? `\u2068${token}\u2069` : token);

/** Text without those marks. @param {string} text */
export const unmarked = (text) => text.replaceAll(/[\u2068\u2069]/g, "");

/** A token, or one and what became of it. @param {string[]} tokens */
export const changeOf = (tokens) => (tokens.length > 1 ? tokens.map(isolated).join(" → ") : (tokens[0] ?? ""));

/** Cuts a text to at most `most` whole characters. @param {string} text @param {number} most */
export function cut(text, most) {
  const characters = [...text.slice(0, 4 * most)];
  return characters.length > most ? characters.slice(0, most - 1).join("") + "…" : text;
}
