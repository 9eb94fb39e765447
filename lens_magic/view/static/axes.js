import { make } from "./dom.js";
import { integer, quoted } from "./format.js";

/**
 * The row and column headers of a table.
 *
 * @typedef {import("./frame.js").Frame} Frame
 * @typedef {{count: number, width: number, height: number, name: string, paint: (el: HTMLElement, i: number) => void,
 *   text: (i: number) => string}} Axis
 */

const NAMED_EVERY = 6;

/** Text of a position: the token it reads and the one that comes next. @param {Frame} frame @param {number} i */
export function flowOf({ data, labels, position }, i) {
  const { inputs, targets } = data.header;
  const p = position[i];
  const reads = p < 0 || inputs[p] < 0 ? "" : `reads ${quoted(data.raw(inputs[p]))}`;
  const next = p < 0 || targets[p] < 0 ? "" : `next is ${quoted(data.raw(targets[p]))}`;
  return `position ${integer(labels.positions[i])}: ${[reads, next].filter(Boolean).join(", ") || "not in this run"}`;
}

/**
 * Headers for positions: the number, the token that came next, and (if there is room) the token read.
 * @param {Frame} frame @param {boolean} tall @returns {Axis}
 */
export function positionAxis(frame, tall) {
  const { data, labels, position } = frame;
  const { targets, inputs, tokens } = data.header;
  const text = (/** @type {number} */ token) => (token < 0 || token === undefined ? "" : tokens[token]);
  return {
    count: labels.positions.length,
    width: 140,
    height: 44,
    name: "next token",
    text: (i) => `${integer(labels.positions[i])} ${text(targets[position[i]])}`,
    paint(el, i) {
      if (el.children.length !== (tall ? 3 : 2)) {
        el.replaceChildren(make("span", "lens-number", ""), make("span", "lens-target", ""));
        if (tall) el.append(make("span", "lens-read", ""));
        el.classList.toggle("lens-tall", tall);
      }
      const p = position[i];
      el.children[0].textContent = integer(labels.positions[i]);
      el.children[1].textContent = text(targets[p]);
      if (tall) el.children[2].textContent = p < 0 || inputs[p] < 0 ? "" : `after ${text(inputs[p])}`;
      el.title = flowOf(frame, i);
      el.classList.toggle("lens-prompt", labels.positions[i] < 0);
      el.classList.toggle("lens-first", labels.positions[i] === 0 && i > 0);
    },
  };
}

/**
 * Headers for layers.
 * @param {number[]} layers labels @returns {Axis}
 */
export function layerAxis(layers) {
  return {
    count: layers.length,
    width: 92,
    height: 27,
    name: "layer",
    text: (i) => `layer ${layers[i]}`,
    paint(el, i) {
      el.classList.add("lens-plain");
      el.textContent = String(layers[i]);
      el.title = `layer ${layers[i]}`;
    },
  };
}

/**
 * Headers for pairs, (layer, site) or (site, candidate); the first of each group has the group's name. A long group
 * repeats it every few pairs, as its first pair is soon scrolled out of view.
 * @param {{group: string, item: string, title: string}[]} pairs @param {string} name @param {number} size of a group
 * @returns {Axis}
 */
export function groupedAxis(pairs, name, size) {
  return {
    count: pairs.length,
    width: 112,
    height: 42,
    name,
    text: (i) => pairs[i].title,
    paint(el, i) {
      if (el.children.length !== 2) el.replaceChildren(make("b", "lens-group-name", ""), make("span", "lens-item", ""));
      el.classList.add("lens-paired");
      const at = i % size;
      const named = at % NAMED_EVERY === 0 && (at === 0 || size - at > 2); // a name may extend over three pairs
      el.children[0].textContent = named ? pairs[i].group : "";
      el.children[1].textContent = pairs[i].item;
      el.title = pairs[i].title;
      el.classList.toggle("lens-group", at === 0);
      el.classList.toggle("lens-named", named);
    },
  };
}
