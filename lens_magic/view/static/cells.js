import { brief, integer, percent, quoted } from "./format.js";
import { make } from "./grid.js";

/** What the grid's rows, columns and cells say about a run: the grid model for one site, size and orientation. */

/** Cell sizes, small to large; `shows` is how much fits inside. */
export const ZOOMS = [
  { colWidth: 46, maxColWidth: 60, rowHeight: 21, shows: "token", className: "lens-zoom-tiny" },
  { colWidth: 64, maxColWidth: 120, rowHeight: 25, shows: "token", className: "lens-zoom-small" },
  { colWidth: 104, maxColWidth: 150, rowHeight: 42, shows: "prob", className: "lens-zoom-medium" },
  { colWidth: 158, maxColWidth: 220, rowHeight: 0, shows: "all", className: "lens-zoom-large" },
];

const MAX_LINES = 12;
const NODES = { token: 2, prob: 5, all: 5 };
const SHADES = Array.from({ length: 101 }, (_, i) => `rgb(var(--lens-shade) / calc(var(--lens-depth) * ${i / 100}))`);

export function shade(prob) {
  return SHADES[Math.round(100 * prob)];
}

function title(data, position) {
  const { inputs, targets, positions } = data.header;
  const reads = inputs[position] < 0 ? "" : `reads ${quoted(data.raw(inputs[position]))}`;
  const predicts = targets[position] < 0 ? "" : `next is ${quoted(data.raw(targets[position]))}`;
  return `position ${integer(positions[position])}: ${[reads, predicts].filter(Boolean).join(", ")}`;
}

/** Layers along one side. */
function layerAxis(data) {
  const { layers } = data.header;
  return {
    count: layers.length,
    width: 88,
    height: 27,
    paint(el, i) {
      el.textContent = layers[i];
      el.title = `layer ${layers[i]}`;
    },
  };
}

/** Positions along one side: the number, the token that came next, and (where there is room) the token read. */
function positionAxis(data, tall) {
  const { positions, targets, inputs, tokens } = data.header;
  const text = (token) => (token < 0 ? "" : tokens[token]);
  return {
    count: positions.length,
    width: 148,
    height: 44,
    paint(el, i) {
      if (!el.firstChild) {
        el.append(make("span", "lens-number", ""), make("span", "lens-target", ""));
        if (tall) el.append(make("span", "lens-read", ""));
      }
      el.children[0].textContent = integer(positions[i]);
      el.children[1].textContent = text(targets[i]);
      if (tall) el.children[2].textContent = inputs[i] < 0 ? "" : `after ${text(inputs[i])}`;
      el.title = title(data, i);
      el.classList.toggle("lens-prompt", positions[i] < 0);
      el.classList.toggle("lens-first", positions[i] === 0 && i > 0);
    },
  };
}

/** Painters of the inside of a cell, by what it shows. */
const INSIDE = {
  token(data) {
    return (el, cell) => {
      el.firstChild.data = data.header.tokens[data.top(cell)];
    };
  },
  prob(data) {
    return (el, cell) => {
      el.children[0].firstChild.data = data.header.tokens[data.top(cell)];
      el.children[1].firstChild.data = percent(data.topProb(cell));
    };
  },
  all(data) {
    const lines = Math.min(data.k, MAX_LINES);
    return (el, cell) => {
      const names = [];
      const probs = [];
      for (let i = cell * data.k; i < cell * data.k + lines; i++) {
        names.push(data.header.tokens[data.arrays.token[i]]);
        probs.push(brief(data.prob(i)));
      }
      el.children[0].firstChild.data = names.join("\n");
      el.children[1].firstChild.data = probs.join("\n");
    };
  },
};

function makeCell(shows) {
  const el = make("div", "lens-cell", shows === "token" ? " " : undefined);
  if (shows !== "token") el.append(make("span", "lens-names", " "), make("span", "lens-probs", " "));
  return el;
}

/**
 * @param {import("./data.js").LensData} data
 * @param {{site: number, zoom: number, transposed: boolean}} view
 * @returns {import("./grid.js").GridModel & {toCell: Function, fromCell: Function}}
 */
export function gridModel(data, view) {
  const zoom = ZOOMS[view.zoom];
  const { sites, layers, positions, targets } = data.header;
  const tall = zoom.shows !== "token" && !view.transposed;
  const [down, across] = [positionAxis(data, tall), layerAxis(data)];
  const [rows, cols] = view.transposed ? [across, down] : [down, across];
  const indices = (r, c) => (view.transposed ? { layer: r, position: c } : { layer: c, position: r });
  const at = (r, c) => data.cell(view.site, indices(r, c).layer, indices(r, c).position);
  const inside = INSIDE[zoom.shows](data);
  return {
    ...zoom,
    rowHeight: zoom.rowHeight || 14 + 17 * Math.min(data.k, MAX_LINES),
    rows: rows.count,
    cols: cols.count,
    headWidth: rows.width,
    headHeight: cols.height,
    nodesPerCell: NODES[zoom.shows],
    label: `Top token of ${sites[view.site]}, ${view.transposed ? "layers down, positions across" : "positions down, layers across"}`,
    makeCell: () => makeCell(zoom.shows),
    paintCell(el, r, c) {
      const cell = at(r, c);
      inside(el, cell);
      el.style.backgroundColor = shade(data.topProb(cell));
      el.classList.toggle("lens-hit", data.top(cell) === targets[indices(r, c).position]);
    },
    paintRowHead: rows.paint,
    paintColHead: cols.paint,
    paintCorner(el) {
      el.textContent = view.transposed ? "layer" : "next token";
      el.title = view.transposed ? "layers down, positions across" : "positions down, layers across";
      el.classList.toggle("lens-stacked", view.transposed);
      el.dataset.across = view.transposed ? "next token" : "layer";
    },
    describe(r, c) {
      const { layer, position } = indices(r, c);
      const cell = at(r, c);
      const first = data.header.tokens[data.top(cell)];
      return `${first}, ${percent(data.topProb(cell))}, layer ${layers[layer]}, ${title(data, position)}`;
    },
    toCell: indices,
    fromCell: ({ layer, position }) => (view.transposed ? [layer, position] : [position, layer]),
  };
}
