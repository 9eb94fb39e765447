import { make } from "./dom.js";
import { changeOf, cut, integer, isolated, quoted } from "./format.js";
import { tokensAt } from "./frame.js";

/**
 * The row and column headers of a table.
 *
 * @typedef {import("./frame.js").Frame} Frame
 * @typedef {{count: number, width: number, height: number, name: string, paint: (el: HTMLElement, i: number) => void,
 *   text: (i: number) => string}} Axis
 */

const NAMED_EVERY = 6;

/** Text of a position: the token that runs read there and the one that comes next, of both where these differ. @param {Frame[]} frames @param {number} i */
export function flowOf(frames, i) {
  const told = (/** @type {string} */ verb, /** @type {"inputs" | "targets"} */ which) => {
    const texts = tokensAt(frames, which, i).map(({ data, row }) => quoted(data.raw(row)));
    return texts.length ? `${verb} ${changeOf(texts)}` : "";
  };
  const flow = [told("reads", "inputs"), told("next is", "targets")].filter(Boolean).join(", ");
  return `position ${integer(frames[0].labels.positions[i])}: ${flow || "not in this run"}`;
}

const EACH = 8; // characters of two tokens in one header

/**
 * Headers for positions: the number, the token that came next, and (if there is room) the token read; of two runs both where
 * these differ.
 * @param {Frame[]} frames @param {boolean} tall @returns {Axis}
 */
export function positionAxis(frames, tall) {
  const { labels } = frames[0];
  const text = (/** @type {"inputs" | "targets"} */ which, /** @type {number} */ i, most = Infinity) => {
    const tokens = tokensAt(frames, which, i).map(({ data, row }) => data.header.tokens[row]);
    return changeOf(tokens.length > 1 ? tokens.map((token) => cut(token, most)) : tokens);
  };
  return {
    count: labels.positions.length,
    width: labels.positions.some((_, i) => tokensAt(frames, "targets", i).length > 1) ? 190 : 140,
    height: 44,
    name: "next token",
    text: (i) => `${integer(labels.positions[i])} ${isolated(text("targets", i))}`,
    paint(el, i) {
      if (el.children.length !== (tall ? 3 : 2)) {
        el.replaceChildren(make("span", "lens-number", ""), make("span", "lens-target", ""));
        if (tall) el.append(make("span", "lens-read", ""));
        el.classList.toggle("lens-tall", tall);
      }
      el.children[0].textContent = integer(labels.positions[i]);
      el.children[1].textContent = text("targets", i, EACH);
      if (tall) {
        const read = text("inputs", i, EACH);
        el.children[2].textContent = read && `after ${isolated(read)}`;
      }
      el.title = flowOf(frames, i);
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
