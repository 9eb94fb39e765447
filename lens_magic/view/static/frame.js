import { settled } from "./query.js";

/**
 * What is shown of one or two runs, by labels, which mean the same in both runs, unlike their indices.
 *
 * @typedef {import("./data.js").LensData} Data
 * @typedef {{site: string, layer: number, position: number}} Cell labels
 * @typedef {import("./measures.js").Choice & {mode: "table" | "token", sites: string[], layers: number[],
 *   zoom: number, transposed: boolean, pairing: "beside" | "difference"}} View the stage's `token` is a vocabulary index
 * @typedef {{positions: number[], layers: number[], sites: string[]}} Labels
 */

/** The union of the runs' labels: positions and layers ascending, sites in the order of the first run. @param {Data[]} datas @returns {Labels} */
export function labelsOf(datas) {
  const all = (/** @type {"positions" | "layers"} */ axis) =>
    [...new Set(datas.flatMap((data) => data.header[axis]))].sort((a, b) => a - b);
  return { positions: all("positions"), layers: all("layers"), sites: [...new Set(datas.flatMap((data) => data.header.sites))] };
}

/**
 * The tokens that runs read at a position, or that came next there: one if it is the same, in the table of the first that has it.
 * @param {Frame[]} frames @param {"inputs" | "targets"} which @param {number} i index of the position's label
 * @returns {{data: Data, row: number}[]}
 */
export function tokensAt(frames, which, i) {
  const found = new Map();
  for (const { data, position } of frames) {
    const row = data.header[which][position[i]] ?? -1;
    const id = data.arrays.ids[row];
    if (row >= 0 && !found.has(id)) found.set(id, { data, row });
  }
  return [...found.values()];
}

/** One run's indices for the labels shown; −1 where it has no such label. */
export class Frame {
  /** @param {Data} data @param {Labels} labels */
  constructor(data, labels) {
    this.data = data;
    this.labels = labels;
    this.position = labels.positions.map((p) => data.positionAt.get(p) ?? -1);
    this.layer = labels.layers.map((l) => data.layerAt.get(l) ?? -1);
    this.site = labels.sites.map((s) => data.siteAt.get(s) ?? -1);
    /** Labels of the layers at which answers settle, by the run's position. @type {Map<number, number>} */
    this.settledAt = new Map();
  }

  /** Offset of a cell by indices of labels, or −1. @param {number} site @param {number} layer @param {number} position */
  cell(site, layer, position) {
    const [s, l, p] = [this.site[site], this.layer[layer], this.position[position]];
    return s < 0 || l < 0 || p < 0 ? -1 : this.data.cell(s, l, p);
  }

  /** Label of the layer at which a position's answer settles; −1 if at none. @param {number} position the run's index */
  settles(position) {
    let label = this.settledAt.get(position);
    if (label === undefined) {
      const layer = settled(this.data, position);
      label = layer < 0 ? -1 : this.data.header.layers[layer];
      this.settledAt.set(position, label);
    }
    return label;
  }
}
