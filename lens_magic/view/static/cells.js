import { flowOf, groupedAxis, layerAxis, positionAxis } from "./axes.js";
import { make } from "./dom.js";
import { brief, changeOf, cut, integer, isolated, percent } from "./format.js";
import { tokensAt } from "./frame.js";
import { difference, measureOf, shade } from "./measures.js";

/**
 * Grid models, which say what rows, columns and cells show: one run, one token, or the difference between two runs.
 *
 * @typedef {import("./frame.js").Frame} Frame
 * @typedef {import("./frame.js").View} View
 * @typedef {import("./frame.js").Cell} Cell
 * @typedef {import("./measures.js").Ramp} Ramp
 * @typedef {{found: number[], pinned: Set<string>}} Marks the token looked for as each run has it, and `keyOf` cells
 * @typedef {{at: (a: number, b: number) => number[], find: (cell: Cell & {j?: number}) => [number, number]}} Places
 *   `at`: indices of the site, layer and position among the frame's labels, and which candidate
 * @typedef {{paint: (el: HTMLElement, a: number, b: number) => void, describe: (a: number, b: number) => string,
 *   marks: (a: number, b: number) => Mark[], tint: (a: number, b: number) => [Ramp, number],
 *   text: (a: number, b: number) => [string[], string], number: (a: number, b: number) => number}} Painter `text`: the token,
 *   or the two of which one became the other, and the number as the cell shows them; `number`: at full precision
 * @typedef {"absent" | "hit" | "settles" | "found" | "pinned" | "group" | "changed"} Mark what a cell has a class for
 * @typedef {{label: string, ramp: Ramp, low: string, high: string}} Scale
 */

/** Cell sizes, small to large; `shows` is how much fits inside. */
export const ZOOMS = [
  { colWidth: 44, leastWidth: 40, maxColWidth: 60, rowHeight: 20, shows: "token", className: "lens-zoom-tiny" },
  { colWidth: 92, leastWidth: 58, maxColWidth: 168, rowHeight: 26, shows: "token", className: "lens-zoom-small" },
  { colWidth: 108, leastWidth: 92, maxColWidth: 150, rowHeight: 42, shows: "number", className: "lens-zoom-medium" },
  { colWidth: 158, leastWidth: 138, maxColWidth: 220, rowHeight: 0, shows: "all", className: "lens-zoom-large" },
];

const MAX_LINES = 12;
const SHORT = { attn_out: "attn", mlp_out: "mlp", resid_post: "resid", resid_pre: "pre", post_ln: "post_ln" };

/** @param {string} site */
export const shortName = (site) => /** @type {Record<string, string>} */ (SHORT)[site] ?? site;

/** @param {Cell} cell */
export const keyOf = ({ site, layer, position }) => `${site}|${layer}|${position}`;

/** @param {import("./frame.js").Labels} labels @param {number[]} at @returns {Cell & {j: number}} */
function named({ sites, layers, positions }, [s, l, p, j]) {
  return { site: sites[s], layer: layers[l], position: positions[p], j };
}

/** @param {string} shows */
function makeCell(shows) {
  const el = make("div", "lens-cell", shows === "token" ? " " : undefined);
  if (shows !== "token") el.append(make("span", "lens-names", " "), make("span", "lens-probs", " "));
  return el;
}

/** Writes a cell's text. @param {HTMLElement} el @param {string} shows @param {string} name @param {string} number */
function write(el, shows, name, number) {
  if (shows === "token") {
    /** @type {Text} */ (el.firstChild).data = name;
    el.dataset.n = number;
    return;
  }
  /** @type {Text} */ (el.children[0].firstChild).data = name;
  /** @type {Text} */ (el.children[1].firstChild).data = number;
}

/** Whether the token looked for is among a cell's candidates. @param {Frame} frame @param {number} offset @param {number} token */
const holdsFound = ({ data }, offset, token) => token >= 0 && data.candidateOf(offset, token) >= 0;

/** @param {HTMLElement} el @param {Mark[]} marks */
const classify = (el, marks) => (el.className = ["lens-cell", ...marks.map((mark) => `lens-${mark}`)].join(" "));

/** Paints the cells of one run. @param {Frame} frame @param {View} view @param {Marks} marks @param {Places} places @returns {Painter & {scale: Scale}} */
function runPainter(frame, view, marks, places) {
  const { data, labels } = frame;
  const { tokens, targets } = data.header;
  const { shows } = ZOOMS[view.zoom];
  const measure = measureOf(data, view);
  const lines = Math.min(data.k, MAX_LINES);
  const stream = labels.sites.indexOf("resid_post");
  const at = (/** @type {number} */ a, /** @type {number} */ b) => {
    const where = places.at(a, b);
    const [s, l, p] = where;
    return { where, s, l, p, offset: frame.cell(s, l, p), position: frame.position[p] };
  };
  const number = (/** @type {number} */ value) => (shows === "number" && measure.text === brief ? percent(value) : measure.text(value));
  const marksOf = (/** @type {ReturnType<typeof at>} */ { where, s, l, offset, position }) => {
    /** @type {Mark[]} */
    const found = [];
    if (offset < 0) {
      found.push("absent");
      return found;
    }
    if (data.holds(offset * data.k, targets[position])) found.push("hit");
    if (s === stream && frame.settles(position) === labels.layers[l]) found.push("settles");
    if (holdsFound(frame, offset, marks.found[0])) found.push("found");
    if (marks.pinned.size > 0 && marks.pinned.has(keyOf(named(labels, where)))) found.push("pinned");
    return found;
  };
  return {
    scale: measure,
    paint(el, a, b) {
      const found = at(a, b);
      const { offset, position } = found;
      classify(el, marksOf(found));
      if (offset < 0) {
        write(el, shows, "", "");
        el.style.backgroundColor = "";
        return;
      }
      const top = data.top(offset);
      const value = measure.value(offset, position);
      if (shows === "all") {
        const names = [];
        const probs = [];
        const total = view.over === "k" ? data.among(offset) : 1;
        for (let i = offset * data.k; i < offset * data.k + lines; i++) {
          names.push(tokens[data.arrays.token[i]]);
          probs.push(brief(data.prob(i) / total));
        }
        write(el, shows, names.join("\n"), probs.join("\n"));
      } else write(el, shows, tokens[top], number(value));
      el.style.backgroundColor = shade(measure.ramp, measure.strength(value));
    },
    marks: (a, b) => marksOf(at(a, b)),
    describe(a, b) {
      const { where, p, offset, position } = at(a, b);
      const cell = named(labels, where);
      if (offset < 0) return `${cell.site}, layer ${cell.layer}, ${flowOf([frame], p)}`;
      const shaded = view.shade === "prob" ? "" : `, ${measure.label} ${measure.text(measure.value(offset, position))}`;
      const settles = cell.site === "resid_post" && frame.settles(position) === cell.layer ? ", settles here" : "";
      return `${tokens[data.top(offset)]}, ${percent(data.topProb(offset))}${shaded}${settles}, ${cell.site} layer ${cell.layer}, ${flowOf([frame], p)}`;
    },
    tint(a, b) {
      const { offset, position } = at(a, b);
      return [measure.ramp, offset < 0 ? 0 : measure.strength(measure.value(offset, position))];
    },
    text(a, b) {
      const { offset, position } = at(a, b);
      return offset < 0 ? [[""], ""] : [[tokens[data.top(offset)]], measure.text(measure.value(offset, position))];
    },
    number(a, b) {
      const { offset, position } = at(a, b);
      const value = offset < 0 ? NaN : measure.value(offset, position);
      return view.shade === "rank" && value < 0 ? NaN : value;
    },
  };
}

/** Paints the candidates of one position, one per cell. @param {Frame} frame @param {View} view @param {Marks} marks @param {Places} places @returns {Painter & {scale: Scale}} */
function candidatePainter(frame, view, marks, places) {
  const { data, labels } = frame;
  const { tokens, targets } = data.header;
  const shows = view.zoom > 1 ? "number" : "token";
  const at = (/** @type {number} */ a, /** @type {number} */ b) => {
    const where = places.at(a, b);
    const [s, l, p, j] = where;
    const offset = frame.cell(s, l, p);
    if (offset < 0 || j >= data.k) return { where, i: -1, j, token: -1, prob: 0, target: -1 };
    const i = offset * data.k + j;
    const prob = view.over === "k" ? data.prob(i) / data.among(offset) : data.prob(i);
    return { where, i, j, token: data.arrays.token[i], prob, target: targets[frame.position[p]] };
  };
  const scale = measureOf(data, { ...view, shade: "prob" });
  const marksOf = (/** @type {ReturnType<typeof at>} */ { where, i, j, target }) => {
    /** @type {Mark[]} */
    const found = [];
    if (data.holds(i, target)) found.push("hit");
    if (j === 0) found.push("group");
    if (data.holds(i, marks.found[0])) found.push("found");
    if (j === 0 && marks.pinned.has(keyOf(named(labels, where)))) found.push("pinned");
    return found;
  };
  return {
    scale: { ...scale, label: scale.label.replace("of the top token", "of each candidate") },
    paint(el, a, b) {
      const found = at(a, b);
      const { token, prob } = found;
      write(el, shows, token < 0 ? "" : tokens[token], token < 0 ? "" : shows === "number" ? percent(prob) : brief(prob));
      classify(el, marksOf(found));
      el.style.backgroundColor = shade("sure", prob);
    },
    marks: (a, b) => marksOf(at(a, b)),
    describe(a, b) {
      const { where, token, prob } = at(a, b);
      const cell = named(labels, where);
      const what = token < 0 ? "no" : `${tokens[token]}, ${percent(prob)},`;
      return `${what} candidate ${cell.j + 1} of ${cell.site} layer ${cell.layer}`;
    },
    tint: (a, b) => ["sure", at(a, b).prob],
    text(a, b) {
      const { token, prob } = at(a, b);
      return token < 0 ? [[""], ""] : [[tokens[token]], brief(prob)];
    },
    number(a, b) {
      const { token, prob } = at(a, b);
      return token < 0 ? NaN : prob;
    },
  };
}

/** Paints the change from one run to another. @param {Frame[]} frames two @param {View[]} views the view, with tokens as each run has them @param {Marks} marks @param {Places} places @returns {Painter & {scale: Scale}} */
function differencePainter(frames, views, marks, places) {
  const [view] = views;
  const { shows } = ZOOMS[view.zoom];
  const measures = frames.map(({ data }, i) => measureOf(data, views[i]));
  const change = difference(measures[0], measures[1], view.shade);
  const { labels } = frames[0];
  const ofNext = view.shade === "target" || view.shade === "rank"; // which two runs need not have in common
  const at = (/** @type {number} */ a, /** @type {number} */ b) => {
    const where = places.at(a, b);
    const [s, l, p] = where;
    const unlike = ofNext && tokensAt(frames, "targets", p).length > 1;
    const sides = frames.map((frame, i) => {
      const offset = frame.cell(s, l, p);
      if (offset < 0) return { token: "", id: -1, value: NaN, found: false };
      const token = frame.data.top(offset);
      return { token: frame.data.header.tokens[token], id: frame.data.arrays.ids[token], value: measures[i].value(offset, frame.position[p]), found: holdsFound(frame, offset, marks.found[i]) };
    });
    const [was, is] = sides;
    const same = was.id === is.id || was.id < 0 || is.id < 0;
    return { where, p, same, was, is, change: was.id < 0 || is.id < 0 || unlike ? NaN : change.between(was.value, is.value) };
  };
  const most = view.zoom > 1 ? 9 : 5; // characters, so that both tokens fit into one line
  /** @typedef {{same: boolean, was: {token: string}, is: {token: string}}} Sides */
  const tokensOf = (/** @type {Sides} */ { same, was, is }) => (same ? [was.token || is.token] : [was, is].map(({ token }) => token || "–"));
  const marksOf = (/** @type {ReturnType<typeof at>} */ { same, was, is }) => {
    /** @type {Mark[]} */
    const found = [];
    if (!same) found.push("changed");
    if (was.found || is.found) found.push("found");
    return found;
  };
  return {
    scale: change,
    paint(el, a, b) {
      const found = at(a, b);
      write(el, shows, shows === "all" ? `${found.was.token || "–"}\n${found.is.token || "–"}` : (found.same ? tokensOf(found) : tokensOf(found).map((token) => isolated(cut(token, most)))).join("→"), change.text(found.change));
      classify(el, marksOf(found));
      el.style.backgroundColor = shade(change.ramp, change.strength(found.change));
    },
    marks: (a, b) => marksOf(at(a, b)),
    describe(a, b) {
      const found = at(a, b);
      const cell = named(labels, found.where);
      return `${changeOf(tokensOf(found))}, ${change.label} ${change.text(found.change)}, ${cell.site} layer ${cell.layer}, ${flowOf(frames, found.p)}`;
    },
    tint: (a, b) => [change.ramp, change.strength(at(a, b).change)],
    text(a, b) {
      const found = at(a, b);
      return [tokensOf(found), change.text(found.change)];
    },
    number: (a, b) => at(a, b).change,
  };
}

/** Positions on one side, layers (of one or several sites) on the other. @param {View} view @param {Frame[]} frames */
function tableAxes(view, frames) {
  const { labels } = frames[0];
  const several = view.sites.length > 1;
  const features = view.layers.flatMap((layer) => view.sites.map((site) => ({ site, layer })));
  const indices = features.map(({ site, layer }) => [labels.sites.indexOf(site), labels.layers.indexOf(layer)]);
  const pairs = features.map(({ site, layer }) => ({ group: String(layer), item: shortName(site), title: `layer ${layer}, ${site}` }));
  /** @type {Places} */
  const places = {
    at: (p, f) => [indices[f][0], indices[f][1], p, 0],
    find: ({ site, layer, position }) => [
      Math.max(0, labels.positions.indexOf(position)),
      Math.max(0, features.findIndex((f) => f.site === site && f.layer === layer)),
    ],
  };
  const tall = ZOOMS[view.zoom].shows !== "token" && !view.transposed;
  const across = several ? groupedAxis(pairs, "layer", view.sites.length) : layerAxis(view.layers);
  return { along: positionAxis(frames, tall), across, places };
}

/** Layers on one side, the sites' k candidates on the other, for the position in `cell`. @param {View} view @param {Frame} frame @param {Cell} cell @param {number} k */
function tokenAxes(view, { labels }, cell, k) {
  const position = labels.positions.indexOf(cell.position);
  const layers = view.layers.map((layer) => labels.layers.indexOf(layer));
  const columns = view.sites.flatMap((site) => Array.from({ length: k }, (_, j) => ({ site, j })));
  const pairs = columns.map(({ site, j }) => ({ group: site, item: `top ${j + 1}`, title: `${site}, candidate ${j + 1}` }));
  /** @type {Places} */
  const places = {
    at: (l, c) => [labels.sites.indexOf(columns[c].site), layers[l], position, columns[c].j],
    find: ({ site, layer, j = 0 }) => [
      Math.max(0, view.layers.indexOf(layer)),
      Math.max(0, columns.findIndex((c) => c.site === site && c.j === j)),
    ],
  };
  return { along: layerAxis(view.layers), across: groupedAxis(pairs, "candidate", k), places };
}

/**
 * @param {Frame[]} frames one, or two for their difference
 * @param {View[]} views the view, with tokens as each run has them
 * @param {Marks} marks
 * @param {Cell} cell the active one
 */
export function gridModel(frames, views, marks, cell) {
  const [view] = views;
  const token = view.mode === "token";
  const k = Math.max(...(view.runs ?? []).map((run) => run.k), frames[0].data.k); // tables side by side have the same cells
  const { along, across, places } = token ? tokenAxes(view, frames[0], cell, k) : tableAxes(view, frames);
  const painter = token
    ? candidatePainter(frames[0], view, marks, places)
    : frames.length > 1
      ? differencePainter(frames, views, marks, places)
      : runPainter(frames[0], view, marks, places);
  const [rows, cols] = view.transposed ? [across, along] : [along, across];
  const turned = (/** @type {(a: number, b: number) => any} */ f) => (view.transposed ? (/** @type {number} */ r, /** @type {number} */ c) => f(c, r) : f);
  const zoom = token ? { ...ZOOMS[Math.min(2, view.zoom)], leastWidth: 52 } : { ...ZOOMS[view.zoom] };
  // Two tokens in a cell need more room.
  if (frames.length > 1) Object.assign(zoom, { colWidth: zoom.colWidth + 40, leastWidth: zoom.leastWidth + 36, maxColWidth: zoom.maxColWidth + 50 });
  const lines = frames.length > 1 ? 2 : Math.min(k, MAX_LINES);
  const subject = token ? `Candidates at position ${integer(cell.position)}` : `Top tokens of ${view.sites.join(", ")}`;
  return {
    ...zoom,
    rowHeight: zoom.rowHeight || 14 + 17 * lines,
    rows: rows.count,
    cols: cols.count,
    headWidth: rows.width,
    headHeight: cols.height,
    runs: frames.length,
    nodesPerCell: zoom.shows === "token" ? 2 : 5,
    label: `${subject}, ${rows.name} down, ${cols.name} across`,
    scale: painter.scale,
    makeCell: () => makeCell(zoom.shows),
    paintCell: /** @type {(el: HTMLElement, r: number, c: number) => void} */ ((el, r, c) => (view.transposed ? painter.paint(el, c, r) : painter.paint(el, r, c))),
    paintRowHead: rows.paint,
    paintColHead: cols.paint,
    rowText: rows.text,
    colText: cols.text,
    corner: { down: rows.name, across: cols.name, stacked: rows.width < 130 },
    describe: /** @type {(r: number, c: number) => string} */ (turned(painter.describe)),
    marks: /** @type {(r: number, c: number) => Mark[]} */ (turned(painter.marks)),
    tint: /** @type {(r: number, c: number) => [Ramp, number]} */ (turned(painter.tint)),
    text: /** @type {(r: number, c: number) => [string[], string]} */ (turned(painter.text)),
    number: /** @type {(r: number, c: number) => number} */ (turned(painter.number)),
    toCell: /** @type {(r: number, c: number) => Cell & {j: number}} */ (turned((a, b) => named(frames[0].labels, places.at(a, b)))),
    fromCell(/** @type {Cell & {j?: number}} */ where) {
      const [a, b] = places.find(where);
      return view.transposed ? [b, a] : [a, b];
    },
  };
}

/** @typedef {ReturnType<typeof gridModel>} Model */
