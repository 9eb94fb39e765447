/** Numbers and token text as readers see them. */

const MINUS = "−";

/** A probability with three significant digits, never rounded up to certainty. */
export function percent(p) {
  if (p >= 0.9995) return ">99.9%";
  if (p >= 0.1) return `${(100 * p).toFixed(1)}%`;
  if (p >= 0.0001) return `${(100 * p).toFixed(2)}%`;
  return p > 1.3e-14 ? p.toExponential(1).replace("e-", "e" + MINUS) : "<1e" + MINUS + "14";
}

/** The same in at most four characters, for the inside of a cell. */
export function brief(p) {
  if (p >= 0.995) return p >= 0.9995 ? "1.00" : ".99+";
  if (p >= 0.005) return p.toFixed(2).slice(1);
  return p >= 0.001 ? p.toFixed(3).slice(1) : "≈0";
}

export function signed(x, digits) {
  return x.toFixed(digits).replace("-", MINUS);
}

export function integer(n) {
  return String(n).replace("-", MINUS);
}

export function rank(n, exact) {
  if (n < 0) return "–";
  return (exact || n < 64 ? "" : "≈ ") + n.toLocaleString("en");
}

/** A token's own text in quotes, with everything that does not print as an escape. */
export function quoted(raw) {
  const escape = (c) => `\\u{${c.codePointAt(0).toString(16)}}`;
  return JSON.stringify(raw).replace(/[\p{C}\p{Zl}\p{Zp}]/gu, escape).replace(/(?! )\p{Zs}/gu, escape);
}
