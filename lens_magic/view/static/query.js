/**
 * Queries on a run: where a token is, its trajectory through the layers, when an answer settles. Indices, not labels.
 *
 * @typedef {import("./data.js").LensData} Data
 * @typedef {{position: number, layer: number}} Place
 */

/** The site whose last layer is the model's output. @param {Data} data */
export function streamSite(data) {
  return data.header.sites.indexOf("resid_post");
}

/** Whether the model's output is among the cells: the residual stream after the model's last layer. @param {Data} data */
export function hasOutput(data) {
  const { layers, depth } = data.header;
  return streamSite(data) >= 0 && layers[layers.length - 1] === depth - 1;
}

/**
 * The first layer from which the emitted token stays first up to the model's last; −1 if there is none, or if the run has not
 * got its output.
 * @param {Data} data @param {number} position
 */
export function settled(data, position) {
  if (!hasOutput(data)) return -1;
  const site = streamSite(data);
  let layer = data.header.layers.length;
  while (layer > 0 && data.targetRank(data.cell(site, layer - 1, position)) === 0) layer -= 1;
  return layer < data.header.layers.length ? layer : -1;
}

/** KL in nats above which two runs are said to have parted: `PARTED` of `lens_magic/lens/difference.py`. */
export const PARTED = 0.1;

/**
 * The first layer at which a token is among a position's candidates; −1 if there is none.
 * @param {Data} data @param {number} site @param {number[]} layers @param {number} position @param {number} token
 */
export function enters(data, site, layers, position, token) {
  return layers.find((layer) => data.candidateOf(data.cell(site, layer, position), token) >= 0) ?? -1;
}

/**
 * Every position at which a token is among the candidates, with the first layer of each.
 * @param {Data} data @param {number} site @param {number[]} layers @param {number} token @returns {Place[]}
 */
export function occurrences(data, site, layers, token) {
  const first = new Int32Array(data.header.positions.length).fill(-1);
  for (const layer of layers) {
    const start = data.cell(site, layer, 0) * data.k;
    for (let i = start; i < start + first.length * data.k; i++) {
      if (!data.holds(i, token)) continue;
      const position = Math.floor((i - start) / data.k);
      if (first[position] < 0) first[position] = layer;
    }
  }
  return [...first.keys()].filter((position) => first[position] >= 0).map((position) => ({ position, layer: first[position] }));
}

/** For every token, the number of a site's cells in which it is among the candidates. @param {Data} data @param {number} site */
export function counts(data, site) {
  const { layers, positions, tokens } = data.header;
  const found = new Uint32Array(tokens.length);
  for (let layer = 0; layer < layers.length; layer++) {
    const start = data.cell(site, layer, 0) * data.k;
    for (let i = start; i < start + positions.length * data.k; i++) if (!Number.isNaN(data.prob(i))) found[data.arrays.token[i]] += 1;
  }
  return found;
}

/**
 * Tokens whose text contains the query, the closest first: equal to it, beginning with it, then the most frequent.
 * `#12` looks for a vocabulary index, or a direction's in a basis.
 * @param {Data} data @param {string} query @param {Uint32Array} frequency @param {number} most @returns {number[]}
 */
export function matching(data, query, frequency, most) {
  const { tokens } = data.header;
  const index = /^#(\d+)$/.exec(query.trim());
  if (index) {
    const row = data.rowOf(Number(index[1]));
    return row < 0 ? [] : [row];
  }
  const wanted = query.toLowerCase();
  if (!wanted) return [];
  const closeness = (/** @type {number} */ row) => {
    const text = data.raw(row).toLowerCase();
    const at = text.indexOf(wanted);
    if (at < 0 && !tokens[row].toLowerCase().includes(wanted)) return -1;
    const bare = text.trim();
    return bare === wanted.trim() || text === wanted ? 2 : bare.startsWith(wanted.trim()) ? 1 : 0;
  };
  return tokens
    .map((_, row) => ({ row, close: frequency[row] ? closeness(row) : -1 }))
    .filter(({ close }) => close >= 0)
    .sort((a, b) => b.close - a.close || frequency[b.row] - frequency[a.row] || a.row - b.row)
    .slice(0, most)
    .map(({ row }) => row);
}

/**
 * A token's standing at one position, layer by layer; null where it is neither a candidate, the target nor tracked, and for a
 * layer of −1, which the run has not got.
 * @param {Data} data @param {number} site @param {number[]} layers @param {number} position @param {number} token
 */
export function trajectory(data, site, layers, position, token) {
  return layers.map((layer) => (layer < 0 ? null : data.standing(data.cell(site, layer, position), position, token)));
}

/** The UTF-8 bytes of a token's text, in hexadecimal; parts of characters are written as `\xe2` in it already. @param {string} raw */
export function bytesOf(raw) {
  const encoder = new TextEncoder();
  const pieces = raw.match(/\\x[0-9a-f]{2}|\\|[^\\]+/g) ?? [];
  const hex = (/** @type {number} */ byte) => byte.toString(16).padStart(2, "0");
  return pieces.flatMap((piece) => (/^\\x/.test(piece) ? [piece.slice(2)] : [...encoder.encode(piece)].map(hex)));
}

/**
 * Parses layers in the notation of `--layers`: `0-4`, `5-`, `-1`, `0,8,-1`, `::4`. Labels in, labels out.
 * @param {string} spec @param {number[]} layers the run's, ascending @returns {number[] | null} null: not understood, or no such layers
 */
export function chosenLayers(spec, layers) {
  const text = spec.replaceAll(/\s|–/g, (c) => (c === "–" ? "-" : ""));
  if (!text || text === "all") return layers;
  const last = layers[layers.length - 1];
  const place = (/** @type {string} */ number) => (Number(number) < 0 ? last + 1 + Number(number) : Number(number));
  const wanted = new Set();
  for (const part of text.split(",")) {
    const slice = /^(-?\d*):(-?\d*)(?::(\d*))?$/.exec(part);
    const range = /^(\d+)-(\d*)$/.exec(part);
    if (slice) {
      const [from, to] = [slice[1] ? place(slice[1]) : 0, slice[2] ? place(slice[2]) : last + 1];
      const step = Number(slice[3] || 1);
      if (step < 1) return null;
      for (let layer = from; layer < Math.min(to, last + 1); layer += step) wanted.add(layer);
    } else if (range) {
      for (let layer = Number(range[1]); layer <= Math.min(last, Number(range[2] || last)); layer++) wanted.add(layer);
    } else if (/^-?\d+$/.test(part)) wanted.add(Number(part) < 0 ? layers.at(Number(part)) : Number(part)); // −1: the last there is
    else return null;
  }
  const found = layers.filter((layer) => wanted.has(layer));
  return found.length ? found : null;
}

/** Layers in that notation; empty for all of them. @param {number[]} chosen ascending @param {number[]} layers the run's */
export function writtenLayers(chosen, layers) {
  if (chosen.length === layers.length) return "";
  const firsts = chosen.filter((layer) => !chosen.includes(layer - 1));
  const lasts = chosen.filter((layer) => !chosen.includes(layer + 1));
  return firsts.map((first, i) => (first === lasts[i] ? first : `${first}-${lasts[i]}`)).join(",");
}
