import { button, make } from "./dom.js";
import { integer, percent, quoted, rank, signed } from "./format.js";
import { bytesOf, enters, hasOutput, PARTED, streamSite } from "./query.js";

/**
 * The panel beside the grid: everything known about one cell.
 *
 * @typedef {import("./frame.js").Frame} Frame
 * @typedef {import("./frame.js").Cell} Cell
 * @typedef {{onPin: (token: number, cell: Cell) => void, onPinCell: (cell: Cell) => void, onGo: (cell: Cell) => void}} DetailCallbacks
 */

/** @param {HTMLElement} list @param {string} name @param {string} hint */
function fact(list, name, hint) {
  const value = make("dd", "", "");
  const term = make("dt", "", name);
  term.title = hint;
  list.append(term, value);
  return value;
}

/** @param {number} x */
const inNats = (x) => (Number.isNaN(x) ? signed(x, 2) : `${signed(x, 2)} nats`);

export class Detail {
  /** @param {Frame} frame @param {DetailCallbacks} on @param {string} [caption] which of two runs */
  constructor(frame, on, caption) {
    this.frame = frame;
    this.on = on;
    /** @type {Cell | null} */
    this.cell = null;
    /** Tokens of the candidates shown. @type {number[]} */
    this.tokens = [];
    this.el = make("section", "lens-detail");
    this.el.setAttribute("aria-label", caption ? `The cell in ${caption}` : "The cell in detail");
    const head = make("div", "lens-detail-head");
    this.place = make("p", "lens-place", "");
    this.pin = button("pin", "Pin this cell's top token, which keeps it in the chart (p)", () => this.cell && on.onPinCell(this.cell), "lens-small");
    head.append(this.place, this.pin);
    this.flow = make("p", "lens-flow");
    this.reads = make("span", "lens-token", "");
    this.next = make("span", "lens-token lens-next", "");
    this.flow.append(this.reads, make("span", "lens-arrow", "→"), this.next);
    const facts = make("dl", "lens-facts");
    this.rank = fact(facts, "rank of next", "How many tokens are likelier here than the token that came next");
    this.prob = fact(facts, "its probability", "Probability of the token that came next, over the whole vocabulary");
    this.entropy = fact(facts, "entropy", "Of the whole distribution");
    this.kl = fact(facts, "KL to output", "KL divergence of this cell's distribution from the model's output");
    if (frame.data.hasApart) this.apart = fact(facts, "KL between runs", "KL divergence of this cell's distribution from the first run's");
    this.enters = fact(facts, `in top ${frame.data.k} from`, "The first layer of this site at which the next token is among the candidates");
    if (hasOutput(frame.data)) this.settles = fact(facts, "settles at", "The first layer of the residual stream from which the next token stays first");
    if (frame.data.header.parts.length) this.parts = fact(facts, "parts at", `The first layer of the residual stream at which the runs are more than ${PARTED} nats apart`);
    this.more = make("p", "lens-more", "");
    if (caption) this.el.append(make("p", "lens-caption", caption));
    this.el.append(head, this.flow, facts, this.table(), this.more);
  }

  table() {
    const { k } = this.frame.data;
    const table = make("table", "lens-candidates");
    const head = make("tr");
    const columns = [
      ["candidate", "Most probable first"],
      ["prob.", "Over the whole vocabulary"],
      [`of ${k}`, `Share among these ${k} alone`],
      ["logit", "After the final norm and the head"],
    ];
    for (const [name, hint] of columns) {
      const th = make("th", "", name);
      th.scope = "col";
      th.title = hint;
      head.append(th);
    }
    const body = make("tbody");
    this.rows = Array.from({ length: k }, (_, j) => {
      const row = make("tr");
      const name = make("td");
      const pin = button("", "", () => this.cell && this.on.onPin(this.tokens[j], this.cell), "lens-candidate");
      name.append(pin);
      row.append(name, ...columns.slice(1).map(() => make("td", "", "")));
      for (const event of ["pointerenter", "focusin"]) row.addEventListener(event, () => this.spell(j));
      return row;
    });
    body.append(...this.rows);
    const top = make("thead");
    top.append(head);
    table.append(top, body);
    const list = make("div", "lens-list");
    list.append(table);
    return list;
  }

  /** @param {Cell} cell */
  show(cell) {
    this.cell = cell;
    const { data } = this.frame;
    const { header } = data;
    const [site, layer, position] = [data.siteAt.get(cell.site), data.layerAt.get(cell.layer), data.positionAt.get(cell.position)];
    this.place.textContent = `${cell.site} · layer ${cell.layer} · position ${integer(cell.position)}`;
    const there = site !== undefined && layer !== undefined && position !== undefined;
    this.el.classList.toggle("lens-nothing", !there);
    if (!there) return;
    const offset = data.cell(site, layer, position);
    this.token(this.reads, header.inputs[position], "read at this position");
    this.token(this.next, header.targets[position], "the token that came next");
    const place = data.targetRank(offset);
    this.rank.textContent = rank(place, data.exact);
    const among = data.candidateOf(offset, header.targets[position]) >= 0;
    const told = (/** @type {string} */ text, exact = data.exact) => (exact || text === "–" ? text : `≈ ${text}`);
    this.prob.textContent = place < 0 ? "–" : told(percent(data.targetProb(offset, position)), data.exact || among);
    this.entropy.textContent = told(inNats(data.entropy(offset)));
    this.kl.textContent = told(inNats(data.kl(offset)));
    const all = header.layers.map((_, i) => i);
    const first = header.targets[position] < 0 ? -1 : enters(data, site, all, position, header.targets[position]);
    this.link(this.enters, first, cell);
    const settles = this.frame.settles(position);
    const stream = { ...cell, site: header.sites[streamSite(data)] ?? cell.site };
    if (this.settles) this.link(this.settles, settles < 0 ? -1 : header.layers.indexOf(settles), stream);
    if (this.apart) this.apart.textContent = told(inNats(data.apart(offset)));
    if (this.parts) this.link(this.parts, header.layers.indexOf(header.parts[position]), stream);
    const candidates = data.candidates(offset, position);
    this.tokens = candidates.map((candidate) => candidate.token);
    candidates.forEach((candidate, j) => this.candidate(this.rows?.[j], candidate));
    this.spell(0);
  }

  /** @param {HTMLElement} el @param {number} layer index, or −1 @param {Cell} cell */
  link(el, layer, cell) {
    const label = this.frame.data.header.layers[layer];
    if (layer < 0) {
      el.textContent = "–";
      return;
    }
    // The new link takes over the focus if the old one, just pressed, had it.
    const link = button(`layer ${label}`, `Go to layer ${label} of ${cell.site}`, () => this.on.onGo({ ...cell, layer: label }), "lens-link");
    const focused = el.contains(document.activeElement);
    el.replaceChildren(link);
    if (focused) link.focus({ preventScroll: true });
  }

  /** @param {HTMLElement} el @param {number} index @param {string} what */
  token(el, index, what) {
    const { data } = this.frame;
    el.textContent = index < 0 ? "–" : data.header.tokens[index];
    el.title = index < 0 ? "" : `${what}: ${this.spelled(index)}`;
  }

  /** @param {HTMLElement | undefined} row @param {import("./data.js").Candidate} candidate */
  candidate(row, { shown, raw, id, prob, share, logit, hit }) {
    if (!row) return;
    const name = /** @type {HTMLElement} */ (row.children[0].firstChild);
    name.textContent = shown;
    name.title = `${quoted(raw)}, id ${id}: click to follow it through the layers`;
    name.setAttribute("aria-label", `${shown}: follow through the layers`);
    [percent(prob), percent(share), signed(logit, 2)].forEach((text, i) => (row.children[i + 1].textContent = text));
    row.style.setProperty("--lens-p", (prob || 0).toFixed(4));
    row.classList.toggle("lens-hit", hit);
  }

  /** @param {number} token */
  spelled(token) {
    const { data } = this.frame;
    const bytes = bytesOf(data.raw(token));
    const most = bytes.slice(0, 16).join(" ") + (bytes.length > 16 ? " …" : "");
    return `${quoted(data.raw(token))}, id ${data.index(token)}, bytes ${most || "none"}`;
  }

  /** Shows the j-th candidate's vocabulary index and bytes. @param {number} j */
  spell(j) {
    if (this.tokens[j] === undefined) return;
    const { data } = this.frame;
    const bytes = bytesOf(data.raw(this.tokens[j]));
    const list = bytes.slice(0, 16).join(" ") + (bytes.length > 16 ? " …" : "");
    const name = make("b", "", data.header.tokens[this.tokens[j]]);
    this.more.replaceChildren(name, ` id ${data.index(this.tokens[j])} · bytes `, make("code", "", list || "none"));
    this.more.title = this.spelled(this.tokens[j]);
  }
}
