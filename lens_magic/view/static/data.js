/**
 * Reads a packed run. `lens_magic/view/data.py` writes it and describes the codings; nothing here draws.
 *
 * @typedef {{dtype: "uint8" | "uint16" | "uint32" | "float32", coding: string, step?: number, offset?: number,
 *   exact?: number, missing?: boolean}} Encoding `missing`: the highest code marks a cell without numbers; with neglog,
 *   square and ranks it always does
 * @typedef {{schema: number, model: string, depth: number, how: string, name: string, interrupted: boolean, basis: string, sites: string[],
 *   layers: number[], positions: number[], k: number, space: string, tokens: string[], raw: Record<string, string>,
 *   inputs: number[], targets: number[], tracked: number[], followed: number, parts: number[],
 *   encoding: Record<string, Encoding>}} Header
 * @typedef {ArrayBuffer | ArrayBufferView} Bytes
 * @typedef {{header: Header, buffers: Record<string, Bytes>}} Packed
 * @typedef {{positions: number[], inputs: number[], targets: number[], tokens: string[], raw: Record<string, string>}} Rows
 * @typedef {Uint8Array | Uint16Array | Uint32Array | Float32Array} Numbers
 * @typedef {{shown: string, raw: string, token: number, id: number, prob: number, share: number, logit: number,
 *   hit: boolean}} Candidate
 * @typedef {{prob: number, rank: number, among: boolean}} Standing a token's standing in a cell
 */

/** What views add to the number of a direction of a basis: `FIRST_DIRECTION` of `lens_magic/view/data.py`. */
const FIRST_DIRECTION = 2 ** 20;

const ARRAYS = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };

/**
 * Bytes as an array of `dtype`, copied only where they do not start on an element's boundary.
 * @param {Bytes} bytes @param {Encoding["dtype"]} dtype @returns {Numbers}
 */
function typed(bytes, dtype) {
  const type = ARRAYS[dtype];
  const buffer = /** @type {ArrayBuffer} */ ("buffer" in bytes ? bytes.buffer : bytes);
  const start = "byteOffset" in bytes ? bytes.byteOffset : 0;
  if (start % type.BYTES_PER_ELEMENT === 0) return new type(buffer, start, bytes.byteLength / type.BYTES_PER_ELEMENT);
  return new type(buffer.slice(start, start + bytes.byteLength));
}

/** Returns a function from codes to values, which looks them up in a table for 8 and 16 bits. @param {Encoding} encoding */
function decoder({ dtype, coding, step = 1, offset = 0, exact = 0, missing = false }) {
  const decode = {
    neglog: (/** @type {number} */ code) => Math.exp(-code * step),
    linear: (/** @type {number} */ code) => code * step + offset,
    square: (/** @type {number} */ code) => code * code * step,
    octaves: (/** @type {number} */ code) => (code < exact ? code : Math.round(exact * 2 ** ((code - exact) * step))),
    plain: (/** @type {number} */ code) => code,
  }[coding];
  if (!decode) throw new Error(`this view does not know the coding ${coding}`);
  const codes = { uint8: 256, uint16: 65536 }[/** @type {string} */ (dtype)];
  if (!codes) return decode;
  const table = new Float64Array(codes);
  for (let code = 0; code < codes; code++) table[code] = decode(code);
  if (missing || coding === "neglog" || coding === "square") table[codes - 1] = NaN;
  return (/** @type {number} */ code) => table[code];
}

export class LensData {
  /** @param {Packed} packed */
  constructor({ header, buffers }) {
    if (header.schema !== 4) throw new Error(`this view reads schema 4, the run was packed as ${header.schema}`);
    // Copies, because a growing run appends to these, and another view may share the header.
    const { positions, inputs, targets, tokens, raw } = header;
    const own = { positions: [...positions], inputs: [...inputs], targets: [...targets], tokens: [...tokens], raw: { ...raw } };
    this.header = { ...header, ...own };
    /** @type {Numbers | null} what directions are numbered by in their basis, where `ids` are another run's */
    this.numbers = null;
    this.k = header.k;
    /** Number of positions that every array has room for. */
    this.room = header.positions.length;
    /** @type {Record<string, Numbers>} */
    this.arrays = {};
    /** @type {Record<string, (code: number) => number>} */
    this.decode = {};
    for (const [name, encoding] of Object.entries(header.encoding)) {
      this.arrays[name] = typed(buffers[name], encoding.dtype);
      this.decode[name] = decoder(encoding);
    }
    const highest = (/** @type {string} */ name) => 2 ** (8 * (this.arrays[name]?.BYTES_PER_ELEMENT ?? 1)) - 1;
    this.missing = { target_rank: highest("target_rank"), tracked_rank: highest("tracked_rank") };
    this.siteAt = new Map(header.sites.map((site, i) => [site, i]));
    this.layerAt = new Map(header.layers.map((layer, i) => [layer, i]));
    this.positionAt = new Map(header.positions.map((position, i) => [position, i]));
    /** @type {Record<string, number>} */
    this.greatestOf = {};
  }

  /** Offset of the cell at these three indices (not labels) into every per-cell array. @param {number} site @param {number} layer @param {number} position */
  cell(site, layer, position) {
    return (site * this.header.layers.length + layer) * this.room + position;
  }

  /** Row of a token in the token table; −1 if the run does not have it. @param {number} id vocabulary index */
  row(id) {
    return this.arrays.ids.indexOf(id);
  }

  /**
   * Takes another run's ids for the directions of the same label, and ids of its own for the rest, if their bases differ: by
   * these two runs are matched.
   * @param {LensData} other
   */
  match(other) {
    if (this.header.basis === other.header.basis) return;
    const own = (this.numbers ??= this.arrays.ids);
    /** @type {Map<string, number>} */
    const theirs = new Map();
    other.arrays.ids.forEach((id, row) => id >= FIRST_DIRECTION && theirs.set(other.raw(row), id));
    this.arrays.ids = own.map((id, row) => {
      if (id < FIRST_DIRECTION) return id;
      const same = theirs.get(this.raw(row));
      theirs.delete(this.raw(row)); // a label may be there twice
      return same ?? id + FIRST_DIRECTION;
    });
  }

  /** A token's vocabulary index, or a direction's in its basis, as readers know it. @param {number} row */
  index(row) {
    return (this.numbers ?? this.arrays.ids)[row] % FIRST_DIRECTION;
  }

  /** Row of a direction of the run's basis, or else of a token, by that index; −1 if there is none. @param {number} index */
  rowOf(index) {
    const ids = this.numbers ?? this.arrays.ids;
    const direction = ids.indexOf(FIRST_DIRECTION + index);
    return direction < 0 ? ids.indexOf(index) : direction;
  }

  /** Row of the first candidate in the token table. @param {number} cell */
  top(cell) {
    return this.arrays.token[cell * this.k];
  }

  /** @param {number} cell */
  topProb(cell) {
    return this.prob(cell * this.k);
  }

  /** The first candidate's share among the k. @param {number} cell */
  topShare(cell) {
    return this.topProb(cell) / this.among(cell);
  }

  /** Probability of all k candidates together. @param {number} cell */
  among(cell) {
    let total = 0;
    for (let i = cell * this.k; i < (cell + 1) * this.k; i++) total += this.prob(i);
    return total;
  }

  /** Probability of the i-th stored candidate, counted over all cells; NaN where the cell has no numbers. @param {number} i */
  prob(i) {
    return this.decode.prob(this.arrays.prob[i]);
  }

  /** Probability of the target; taken from the candidates, whose code is finer, if it is one of them. @param {number} cell @param {number} position */
  targetProb(cell, position) {
    const j = this.candidateOf(cell, this.header.targets[position]);
    return j < 0 ? this.decode.target_prob(this.arrays.target_prob[cell]) : this.prob(cell * this.k + j);
  }

  /** Number of tokens more probable than the target; −1 if there is no target, or the cell has no numbers. @param {number} cell */
  targetRank(cell) {
    const code = this.arrays.target_rank[cell];
    return code === this.missing.target_rank ? -1 : this.decode.target_rank(code);
  }

  /** Whether ranks, entropies and the like are as good as the run's: a large run has a byte for each. */
  get exact() {
    return this.header.encoding.target_rank.coding === "plain";
  }

  /** Entropy in nats; NaN where the cell has no numbers. @param {number} cell */
  entropy(cell) {
    return this.decode.entropy(this.arrays.entropy[cell]);
  }

  /** KL(the model's output ‖ this cell's distribution) in nats; NaN where the cell has no numbers. @param {number} cell */
  kl(cell) {
    return this.decode.kl_final(this.arrays.kl_final[cell]);
  }

  get hasApart() {
    return "kl_apart" in this.arrays;
  }

  /** KL(the first run's distribution ‖ this second run's) in nats; NaN where it is not known. @param {number} cell */
  apart(cell) {
    return this.hasApart ? this.decode.kl_apart(this.arrays.kl_apart[cell]) : NaN;
  }

  /** Maximum of an array's values at some sites; 0 without it. @param {"entropy" | "kl_final" | "kl_apart" | "target_rank"} name @param {string[]} sites */
  greatest(name, sites) {
    const key = [name, ...sites].join();
    if (this.greatestOf[key] !== undefined) return this.greatestOf[key];
    const { positions, layers } = this.header;
    const array = this.arrays[name];
    if (!array) return 0;
    const missing = 2 ** (8 * array.BYTES_PER_ELEMENT) - 1;
    let [most, where] = [-1, 0];
    for (const site of sites.flatMap((label) => this.siteAt.get(label) ?? [])) {
      for (let layer = 0; layer < layers.length; layer++) {
        const start = this.cell(site, layer, 0);
        for (let i = start; i < start + positions.length; i++) {
          if (array[i] > most && array[i] !== missing) [most, where] = [array[i], i];
        }
      }
    }
    if (most < 0) return 0;
    return (this.greatestOf[key] = name === "target_rank" ? this.targetRank(where) : this.decode[name](most));
  }

  /** A token's actual text. @param {number} token */
  raw(token) {
    const { raw, tokens, space } = this.header;
    return raw[token] ?? tokens[token].replaceAll(space, " ");
  }

  /** Index of a token among the cell's candidates; −1 if it is none of them, or the cell has no numbers. @param {number} cell @param {number} token */
  candidateOf(cell, token) {
    for (let i = cell * this.k; i < (cell + 1) * this.k; i++) if (this.holds(i, token)) return i - cell * this.k;
    return -1;
  }

  /** Whether the i-th stored candidate is this token and has a number. @param {number} i @param {number} token */
  holds(i, token) {
    return this.arrays.token[i] === token && !Number.isNaN(this.prob(i));
  }

  /**
   * A token's probability and rank in a cell if it is a candidate, the target or tracked, else null.
   * @param {number} cell @param {number} position @param {number} token @returns {Standing | null}
   */
  standing(cell, position, token) {
    const j = this.candidateOf(cell, token);
    if (j >= 0) return { prob: this.prob(cell * this.k + j), rank: j, among: true };
    if (token === this.header.targets[position] && this.targetRank(cell) >= 0) {
      return { prob: this.targetProb(cell, position), rank: this.targetRank(cell), among: false };
    }
    const t = this.trackedAt(position, token);
    if (t < 0) return null;
    const i = cell * this.header.followed + t;
    const rank = this.arrays.tracked_rank[i];
    return { prob: this.decode.tracked_prob(this.arrays.tracked_prob[i]), rank: rank === this.missing.tracked_rank ? -1 : rank, among: false };
  }

  /** Index of a token among a position's tracked tokens; −1 if it is none of them. @param {number} position @param {number} token */
  trackedAt(position, token) {
    const { tracked, followed } = this.header;
    const own = this.arrays.tracked;
    if (!own) return tracked.indexOf(token);
    for (let t = 0; t < followed; t++) if (own[position * followed + t] === token) return t;
    return -1;
  }

  /** @param {number} cell @param {number} position @returns {Candidate[]} all k, the most probable first */
  candidates(cell, position) {
    const { tokens, targets } = this.header;
    const total = this.among(cell);
    const first = this.decode.logit(this.arrays.logit[cell]);
    const below = (/** @type {number} */ i) =>
      "below" in this.arrays ? this.decode.below(this.arrays.below[i]) : (this.arrays.prob[i] - this.arrays.prob[cell * this.k]) * (this.header.encoding.prob.step ?? 1);
    return Array.from({ length: this.k }, (_, j) => {
      const i = cell * this.k + j;
      const token = this.arrays.token[i];
      return {
        shown: tokens[token],
        raw: this.raw(token),
        token,
        id: this.index(token),
        prob: this.prob(i),
        share: this.prob(i) / total,
        logit: Number.isNaN(this.prob(i)) ? NaN : first - below(i),
        hit: this.holds(i, targets[position]),
      };
    });
  }

  /**
   * Appends positions to a growing run.
   * @param {Rows} rows @param {Record<string, Bytes>} buffers coded as the header says; `ids` of the new tokens only
   */
  append({ positions, inputs, targets, tokens, raw }, buffers) {
    const { header } = this;
    const [old, more] = [header.positions.length, positions.length];
    if (old + more > this.room) this.grow(Math.max(64, 2 * (old + more)));
    for (const [row, text] of Object.entries(raw)) header.raw[Number(row) + header.tokens.length] = text;
    header.tokens.push(...tokens);
    for (const [name, { dtype }] of Object.entries(header.encoding)) {
      const added = typed(buffers[name], dtype);
      if (name === "ids") {
        const ids = new Uint32Array(this.arrays.ids.length + added.length);
        ids.set(this.arrays.ids);
        ids.set(added, this.arrays.ids.length);
        this.arrays.ids = ids;
        continue;
      }
      const each = this.perPosition(name);
      for (let block = 0; block < header.sites.length * header.layers.length; block++) {
        this.arrays[name].set(added.subarray(block * more * each, (block + 1) * more * each), (block * this.room + old) * each);
      }
    }
    positions.forEach((position, i) => this.positionAt.set(position, old + i));
    header.positions.push(...positions);
    header.inputs.push(...inputs);
    header.targets.push(...targets);
    this.greatestOf = {};
  }

  /** Number of values per position in one (site, layer) of an array. @param {string} name */
  perPosition(name) {
    if (name.startsWith("tracked_")) return this.header.followed;
    return name === "token" || name === "prob" ? this.k : 1;
  }

  /** Makes room for `room` positions. @param {number} room */
  grow(room) {
    const { sites, layers, encoding, positions } = this.header;
    for (const [name, { dtype }] of Object.entries(encoding)) {
      if (name === "ids") continue;
      const each = this.perPosition(name);
      const wide = new ARRAYS[dtype](sites.length * layers.length * room * each);
      for (let block = 0; block < sites.length * layers.length; block++) {
        const from = block * this.room * each;
        wide.set(this.arrays[name].subarray(from, from + positions.length * each), block * room * each);
      }
      this.arrays[name] = wide;
    }
    this.room = room;
  }
}
