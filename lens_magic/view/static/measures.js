import { brief, count, delta, integer, nats } from "./format.js";

/**
 * Measures: what shades a cell, and gives the number in it.
 *
 * @typedef {import("./data.js").LensData} Data
 * @typedef {"prob" | "target" | "rank" | "entropy" | "kl" | "token"} RunShading
 * @typedef {RunShading | "apart"} Shading of a run, or of the difference between two
 * @typedef {{shade: Shading, over: "all" | "k", token: number, name?: string, sites: string[], runs?: Data[]}} Choice `token`: a
 *   row of the token table, or −1; `name`: its text, which another run may have if this one does not; `runs`: all runs on show,
 *   which have one scale
 * @typedef {"sure" | "unsure" | "more" | "less"} Ramp colours by meaning, so that different kinds of measures look different
 * @typedef {{label: string, ramp: Ramp, low: string, high: string, value: (cell: number, position: number) => number,
 *   strength: (value: number) => number, text: (value: number) => string}} Measure `strength` in −1 … 1
 */

/** Names of the measures, in the order in which they are offered. @type {Record<RunShading, string>} */
export const SHADINGS = {
  prob: "probability of the top token",
  target: "probability of the next token",
  rank: "rank of the next token",
  entropy: "entropy",
  kl: "KL to the output",
  token: "probability of a token",
};

export const APART = "KL between the runs";

/** What a probability over the candidates alone is over. @param {Data[]} runs all on show */
export const topOf = (runs) => `top ${[...new Set(runs.map(({ k }) => k))].join(" or ")}`;

/** @param {Data} data @param {Choice} choice */
function probability(data, { over, token }) {
  const share = over === "k";
  const of = (/** @type {number} */ cell, /** @type {number} */ position, /** @type {number} */ row) => {
    const standing = data.standing(cell, position, row);
    if (share) return standing?.among ? standing.prob / data.among(cell) : NaN;
    return standing ? standing.prob : NaN;
  };
  return {
    top: share ? (/** @type {number} */ cell) => data.topShare(cell) : (/** @type {number} */ cell) => data.topProb(cell),
    target: (/** @type {number} */ cell, /** @type {number} */ position) => of(cell, position, data.header.targets[position]),
    token: (/** @type {number} */ cell, /** @type {number} */ position) => of(cell, position, token),
  };
}

/** @param {Data} data @param {Choice} choice @returns {Measure} */
export function measureOf(data, choice) {
  const { runs = [data] } = choice;
  const among = choice.over === "k" ? `, among the ${topOf(runs)}` : ", of the whole vocabulary";
  const greatest = (/** @type {Parameters<Data["greatest"]>[0]} */ name) => Math.max(...runs.map((run) => run.greatest(name, choice.sites)));
  const share = { ramp: /** @type {Ramp} */ ("sure"), low: "0", high: "1", strength: (/** @type {number} */ p) => p || 0, text: brief };
  const ps = probability(data, choice);
  switch (choice.shade) {
    case "target":
      return { ...share, label: SHADINGS.target + among, value: ps.target };
    case "token": {
      const name = choice.name || (data.header.tokens[choice.token] ?? "…");
      return { ...share, label: `probability of ${name}${among}`, value: ps.token };
    }
    case "rank": {
      const most = Math.max(1, greatest("target_rank"));
      return {
        label: SHADINGS.rank,
        ramp: "sure",
        low: count(most),
        high: "0 (first)",
        value: (cell) => data.targetRank(cell),
        strength: (n) => (n < 0 ? 0 : 1 - Math.log1p(n) / Math.log1p(most)),
        text: count,
      };
    }
    case "entropy":
    case "kl":
    case "apart": {
      const { shade } = choice;
      const most = Math.max(1e-9, greatest(/** @type {const} */ ({ entropy: "entropy", kl: "kl_final", apart: "kl_apart" })[shade]));
      return {
        label: `${shade === "apart" ? APART : SHADINGS[shade]} in nats`,
        ramp: "unsure",
        low: "0",
        high: nats(most),
        value: (cell) => data[shade](cell),
        strength: (x) => Math.min(1, x / most) || 0,
        text: nats,
      };
    }
    default:
      return { ...share, label: SHADINGS.prob + among, value: ps.top };
  }
}

/**
 * The change of a measure from one run to another: value(second) − value(first). Changes of ranks are counted in doublings,
 * so that from 2,000 to 1,000 is as much as from 2 to 1. The KL between the runs is a measure of the change, which the second
 * has.
 *
 * @param {Measure} first @param {Measure} second @param {Shading} shade
 * @returns {Omit<Measure, "value"> & {between: (a: number, b: number) => number}}
 */
export function difference(first, second, shade) {
  if (shade === "apart") return { ...second, between: (_, b) => b };
  const doublings = shade === "rank";
  const span = doublings ? 10 : first.ramp === "unsure" ? Math.max(Number(first.high), Number(second.high)) || 1 : 1;
  const between = (/** @type {number} */ a, /** @type {number} */ b) => {
    if (doublings) return a < 0 || b < 0 ? NaN : Math.log2((b + 1) / (a + 1));
    return b - a;
  };
  const unit = doublings ? " in doublings" : "";
  return {
    label: `change of ${first.label}${unit}`,
    ramp: "more",
    low: integer(-span),
    high: `+${span}`,
    strength: (x) => Math.max(-1, Math.min(1, x / span)) || 0,
    text: (x) => delta(x, first.ramp === "sure" && !doublings ? brief : nats),
    between,
  };
}

/** The style sheet's colours in 101 steps of strength. @type {Record<Ramp, string[]>} */
const RAMPS = { sure: [], unsure: [], more: [], less: [] };
for (const [name, steps] of Object.entries(RAMPS)) {
  for (let i = 0; i <= 100; i++) steps.push(`rgb(var(--lens-${name}) / calc(var(--lens-depth-${name}) * ${i / 100}))`);
}

/** @param {Ramp} ramp @param {number} strength in −1 … 1; NaN, for unknown, gives no shade */
export function shade(ramp, strength) {
  const step = Math.round(100 * Math.abs(strength)) || 0;
  return RAMPS[ramp === "more" && strength < 0 ? "less" : ramp][step];
}
