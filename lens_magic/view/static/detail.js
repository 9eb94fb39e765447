import { integer, percent, quoted, rank, signed } from "./format.js";
import { make } from "./grid.js";

/** The panel beside the grid: everything kept about one cell. */

function fact(list, name, hint) {
  const value = make("dd", "", "");
  const term = make("dt", "", name);
  term.title = hint;
  list.append(term, value);
  return value;
}

export class Detail {
  /** @param {import("./data.js").LensData} data */
  constructor(data) {
    this.data = data;
    this.el = make("section", "lens-detail");
    this.el.setAttribute("aria-label", "The cell in detail");
    this.place = make("p", "lens-place", "");
    this.flow = make("p", "lens-flow");
    this.reads = make("span", "lens-token", "");
    this.next = make("span", "lens-token lens-next", "");
    this.flow.append(this.reads, make("span", "lens-arrow", "→"), this.next);
    const facts = make("dl", "lens-facts");
    this.rank = fact(facts, "rank of next", "How many tokens are likelier here than the token that came next");
    this.prob = fact(facts, "its probability", "Probability of the token that came next, over the whole vocabulary");
    this.entropy = fact(facts, "entropy", "Of the whole distribution");
    this.el.append(this.place, this.flow, facts, this.table());
  }

  table() {
    const table = make("table", "lens-candidates");
    const head = make("tr");
    const columns = [
      ["candidate", "Most probable first"],
      ["prob.", "Over the whole vocabulary"],
      [`of ${this.data.k}`, `Share among these ${this.data.k} alone`],
      ["logit", "After the final norm and the head"],
    ];
    for (const [name, hint] of columns) {
      const th = make("th", "", name);
      th.scope = "col";
      th.title = hint;
      head.append(th);
    }
    const body = make("tbody");
    this.rows = Array.from({ length: this.data.k }, () => {
      const row = make("tr");
      row.append(...columns.map(() => make("td", "", "")));
      return row;
    });
    body.append(...this.rows);
    const top = make("thead");
    top.append(head);
    table.append(top, body);
    return table;
  }

  /** Shows the cell at these indices. */
  show({ site, layer, position }) {
    const { data } = this;
    const { header } = data;
    const cell = data.cell(site, layer, position);
    this.place.textContent = `${header.sites[site]} · layer ${header.layers[layer]} · position ${integer(header.positions[position])}`;
    this.token(this.reads, header.inputs[position], "read at this position");
    this.token(this.next, header.targets[position], "the token that came next");
    const place = data.targetRank(cell);
    this.rank.textContent = rank(place, data.exactRanks);
    this.prob.textContent = place < 0 ? "–" : percent(data.targetProb(cell));
    this.entropy.textContent = `${data.entropy(cell).toFixed(2)} nats`;
    data.candidates(cell, position).forEach((candidate, j) => this.candidate(this.rows[j], candidate));
  }

  token(el, index, what) {
    const { tokens } = this.data.header;
    el.textContent = index < 0 ? "–" : tokens[index];
    el.title = index < 0 ? "" : `${what}: ${quoted(this.data.raw(index))}, id ${this.data.arrays.ids[index]}`;
  }

  /** @param {HTMLElement} row @param {import("./data.js").Candidate} candidate */
  candidate(row, { shown, raw, id, prob, share, logit, hit }) {
    const texts = [shown, percent(prob), percent(share), signed(logit, 2)];
    texts.forEach((text, i) => (row.children[i].textContent = text));
    row.children[0].title = `${quoted(raw)}, id ${id}`;
    row.style.setProperty("--lens-p", prob.toFixed(4));
    row.classList.toggle("lens-hit", hit);
  }
}
