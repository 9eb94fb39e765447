/**
 * The packed run, read. `lens_magic/view/data.py` writes it and describes the codings; nothing here draws.
 *
 * @typedef {{dtype: string, coding: string, step?: number, offset?: number}} Encoding
 * @typedef {{schema: number, model: string, interrupted: boolean, sites: string[], layers: number[],
 *   positions: number[], k: number, space: string, tokens: string[], raw: Record<string, string>,
 *   inputs: number[], targets: number[], encoding: Record<string, Encoding>}} Header
 * @typedef {{header: Header, buffers: Record<string, ArrayBuffer | ArrayBufferView>}} Packed
 * @typedef {{shown: string, raw: string, id: number, prob: number, share: number, logit: number, hit: boolean}} Candidate
 */

const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };
const EXACT_RANKS = 64;
const RANKS_PER_OCTAVE = 15;

/** Views bytes as an array of `dtype`, copying only where the bytes do not start on an element's boundary. */
function typed(bytes, dtype) {
  const type = ARRAYS[dtype];
  const buffer = bytes.buffer ?? bytes;
  const start = bytes.byteOffset ?? 0;
  if (start % type.BYTES_PER_ELEMENT === 0) return new type(buffer, start, bytes.byteLength / type.BYTES_PER_ELEMENT);
  return new type(buffer.slice(start, start + bytes.byteLength));
}

export class LensData {
  /** @param {Packed} packed */
  constructor({ header, buffers }) {
    if (header.schema !== 1) throw new Error(`this view reads schema 1, the run was packed as ${header.schema}`);
    this.header = header;
    this.k = header.k;
    this.arrays = {};
    for (const [name, { dtype }] of Object.entries(header.encoding)) this.arrays[name] = typed(buffers[name], dtype);
    this.missing = 2 ** (8 * this.arrays.target_rank.BYTES_PER_ELEMENT) - 1;
  }

  /** Offset of the cell at these three indices (not labels) into every per-cell array. */
  cell(site, layer, position) {
    const { layers, positions } = this.header;
    return (site * layers.length + layer) * positions.length + position;
  }

  /** Row of the first candidate in the token table. */
  top(cell) {
    return this.arrays.token[cell * this.k];
  }

  topProb(cell) {
    return this.prob(cell * this.k);
  }

  /** Probability of the i-th stored candidate, counted over all cells. */
  prob(i) {
    return Math.exp(-this.arrays.prob[i] * this.header.encoding.prob.step);
  }

  targetProb(cell) {
    return Math.exp(-this.arrays.target_prob[cell] * this.header.encoding.target_prob.step);
  }

  /** How many tokens are likelier than the target; −1 where the position has no target. */
  targetRank(cell) {
    const code = this.arrays.target_rank[cell];
    if (code === this.missing) return -1;
    if (code < EXACT_RANKS || this.exactRanks) return code;
    return Math.round(EXACT_RANKS * 2 ** ((code - EXACT_RANKS) / RANKS_PER_OCTAVE));
  }

  get exactRanks() {
    return this.header.encoding.target_rank.coding === "plain";
  }

  /** Nats. */
  entropy(cell) {
    return this.arrays.entropy[cell] * this.header.encoding.entropy.step;
  }

  /** A token's own text, from its display text. */
  raw(token) {
    return this.header.raw[token] ?? this.header.tokens[token].replaceAll(this.header.space, " ");
  }

  /** @returns {Candidate} */
  candidate(cell, j, position, total) {
    const i = cell * this.k + j;
    const { prob, logit } = this.header.encoding;
    const token = this.arrays.token[i];
    const below = (this.arrays.prob[i] - this.arrays.prob[cell * this.k]) * prob.step;
    return {
      shown: this.header.tokens[token],
      raw: this.raw(token),
      id: this.arrays.ids[token],
      prob: this.prob(i),
      share: this.prob(i) / total,
      logit: this.arrays.logit[cell] * logit.step + logit.offset - below,
      hit: token === this.header.targets[position],
    };
  }

  /** @returns {Candidate[]} all k, the likeliest first */
  candidates(cell, position) {
    let total = 0;
    for (let j = 0; j < this.k; j++) total += this.prob(cell * this.k + j);
    return Array.from({ length: this.k }, (_, j) => this.candidate(cell, j, position, total));
  }
}
