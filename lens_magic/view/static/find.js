import { button, make } from "./dom.js";
import { cut, integer, plural } from "./format.js";
import { counts, matching, occurrences } from "./query.js";

/**
 * Token search: an input, the tokens that match, and steps between the places where the chosen one is among the candidates.
 *
 * Tokens by vocabulary index and places by labels, which mean the same in two runs.
 *
 * @typedef {import("./data.js").LensData} Data
 * @typedef {{position: number, layer: number, runs: number[]}} Found a place, and which of the runs have the token there
 */

const MOST_OFFERED = 8;

export class Find {
  /**
   * @param {Data[]} datas one or two
   * @param {{id: string, site: () => string, layers: () => number[], textOf: (token: number) => string, nameOf: (run: number) => string,
   *   onFound: (token: number, place: Found | null) => void, onLeave: () => void}} on
   */
  constructor(datas, on) {
    this.datas = datas;
    this.top = `top ${[...new Set(datas.map((data) => data.k))].join(" or ")}`;
    this.on = on;
    this.token = -1;
    /** @type {Found[]} */
    this.places = [];
    this.at = 0;
    this.choice = 0;
    /** @type {number[]} */
    this.offered = [];
    this.el = make("div", "lens-find");
    this.input = make("input", "lens-input");
    Object.assign(this.input, { type: "text", placeholder: "Find a token  ( / )", autocomplete: "off", spellcheck: false });
    const attributes = { role: "combobox", "aria-label": "Find a token", "aria-expanded": "false", "aria-controls": `${on.id}-found`, "aria-autocomplete": "list" };
    for (const [name, value] of Object.entries(attributes)) this.input.setAttribute(name, value);
    this.list = make("ul", "lens-found-list");
    this.list.id = `${on.id}-found`;
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-label", "Tokens found");
    this.list.hidden = true;
    this.status = make("span", "lens-found-status", "");
    this.status.setAttribute("role", "status");
    this.steps = make("span", "lens-tools");
    this.steps.append(
      button("‹", "Previous place", () => this.step(-1)),
      button("›", "Next place", () => this.step(1)),
      button("×", "Clear the search", () => this.clear()),
    );
    this.steps.hidden = true;
    this.el.append(this.input, this.list, this.status, this.steps);
    this.input.addEventListener("input", () => {
      this.forget(); // what Enter would step through must be what the field says
      this.offer();
    });
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.input.addEventListener("blur", () => this.close());
  }

  offer() {
    const searched = this.datas.flatMap((data) => {
      const site = data.siteAt.get(this.on.site());
      return site === undefined ? [] : [{ data, frequency: counts(data, site) }];
    });
    const closest = searched.map(({ data, frequency }) => matching(data, this.input.value, frequency, MOST_OFFERED).map((row) => data.arrays.ids[row]));
    const inTurn = Array.from({ length: MOST_OFFERED }, (_, n) => closest.flatMap((tokens) => tokens[n] ?? [])).flat();
    this.offered = [...new Set(inTurn)].slice(0, MOST_OFFERED);
    this.choice = 0;
    const cells = (/** @type {number} */ token) => searched.reduce((n, { data, frequency }) => n + (frequency[data.row(token)] ?? 0), 0);
    this.list.replaceChildren(
      ...this.offered.map((token, i) => {
        const item = make("li");
        item.id = `${this.on.id}-found-${i}`;
        item.setAttribute("role", "option");
        item.append(make("span", "lens-token", cut(this.on.textOf(token), 32)), make("small", "", plural(cells(token), "cell")));
        // Not click: the input must keep the focus until the choice is made.
        item.addEventListener("pointerdown", (event) => {
          event.preventDefault();
          this.choose(token);
        });
        return item;
      }),
    );
    const nothing = this.input.value !== "" && !this.offered.length;
    this.status.textContent = nothing ? `not in the ${this.top} of this site` : "";
    this.open();
  }

  open() {
    this.list.hidden = !this.offered.length;
    this.input.setAttribute("aria-expanded", String(!this.list.hidden));
    [...this.list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === this.choice)));
    if (this.list.hidden) this.close();
    else this.input.setAttribute("aria-activedescendant", `${this.on.id}-found-${this.choice}`);
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    event.stopPropagation();
    const down = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (down && !this.list.hidden) {
      this.choice = (this.choice + down + this.offered.length) % this.offered.length;
      this.open();
    } else if (event.key === "Enter" && !this.list.hidden) this.choose(this.offered[this.choice]);
    else if (event.key === "Enter" && this.token >= 0) this.step(event.shiftKey ? -1 : 1);
    else if (event.key === "Escape") {
      if (this.list.hidden) this.clear();
      this.close();
      this.on.onLeave();
    } else return;
    event.preventDefault();
  }

  /** Goes to the first place where a token is among the candidates. @param {number} token */
  choose(token) {
    this.token = token;
    this.input.value = this.on.textOf(token);
    this.close();
    this.look();
    this.at = 0;
    this.go();
  }

  /** Updates the places where the token is among the candidates of the site and layers shown. */
  look() {
    /** @type {Map<string, Found>} */
    const found = new Map();
    this.datas.forEach((data, run) => {
      const [site, row] = [data.siteAt.get(this.on.site()), data.row(this.token)];
      if (site === undefined || row < 0) return;
      const layers = this.on.layers().flatMap((layer) => data.layerAt.get(layer) ?? []);
      for (const at of occurrences(data, site, layers, row)) {
        const [position, layer] = [data.header.positions[at.position], data.header.layers[at.layer]];
        const runs = found.get(`${position}|${layer}`)?.runs ?? [];
        found.set(`${position}|${layer}`, { position, layer, runs: [...runs, run] });
      }
    });
    this.places = [...found.values()].sort((a, b) => a.position - b.position || a.layer - b.layer);
  }

  /** @param {number} by */
  step(by) {
    if (this.token < 0) return;
    this.look(); // again: another site or other layers may be shown, and the run may have grown
    this.at = (this.at + by + this.places.length) % (this.places.length || 1);
    this.go();
  }

  go() {
    const place = this.places[this.at] ?? null;
    const whose = place && place.runs.length < this.datas.length ? `, ${this.on.nameOf(place.runs[0])}` : "";
    this.status.textContent = place
      ? `${this.at + 1} of ${this.places.length} · position ${integer(place.position)}, layer ${place.layer}${whose}`
      : `not in the ${this.top} of the layers on show`;
    this.status.title = `Places at which it enters the ${this.top}`;
    this.steps.hidden = false;
    this.on.onFound(this.token, place);
  }

  clear() {
    this.offered = [];
    this.input.value = "";
    this.status.textContent = "";
    this.forget();
  }

  /** The token chosen is no longer looked for. */
  forget() {
    if (this.token < 0) return;
    this.token = -1;
    this.places = [];
    this.steps.hidden = true;
    this.on.onFound(-1, null);
  }

  focus() {
    this.input.focus();
    this.input.select();
  }
}
