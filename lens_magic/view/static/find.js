import { button, make } from "./dom.js";
import { cut, integer, plural } from "./format.js";
import { counts, matching, occurrences } from "./query.js";

/**
 * Token search: an input, the tokens that match, and steps between the places where the chosen one is among the candidates.
 *
 * @typedef {import("./data.js").LensData} Data
 * @typedef {import("./query.js").Place} Place
 */

const MOST_OFFERED = 8;

export class Find {
  /**
   * @param {Data} data
   * @param {{id: string, site: () => number, layers: () => number[], onFound: (token: number, place: Place | null) => void, onLeave: () => void}} on
   */
  constructor(data, on) {
    this.data = data;
    this.on = on;
    this.token = -1;
    /** @type {Place[]} */
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
    this.input.addEventListener("input", () => this.offer());
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.input.addEventListener("blur", () => this.close());
  }

  offer() {
    this.offered = matching(this.data, this.input.value, counts(this.data, this.on.site()), MOST_OFFERED);
    this.choice = 0;
    const frequency = counts(this.data, this.on.site());
    this.list.replaceChildren(
      ...this.offered.map((token, i) => {
        const item = make("li");
        item.id = `${this.on.id}-found-${i}`;
        item.setAttribute("role", "option");
        item.append(make("span", "lens-token", cut(this.data.header.tokens[token], 32)), make("small", "", plural(frequency[token], "cell")));
        // Not click: the input must keep the focus until the choice is made.
        item.addEventListener("pointerdown", (event) => {
          event.preventDefault();
          this.choose(token);
        });
        return item;
      }),
    );
    const nothing = this.input.value !== "" && !this.offered.length;
    this.status.textContent = nothing ? `not in the top ${this.data.k} of this site` : "";
    this.open();
  }

  open() {
    this.list.hidden = !this.offered.length;
    this.input.setAttribute("aria-expanded", String(!this.list.hidden));
    [...this.list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === this.choice)));
    if (this.list.hidden) this.input.removeAttribute("aria-activedescendant");
    else this.input.setAttribute("aria-activedescendant", `${this.on.id}-found-${this.choice}`);
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
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
    this.input.value = this.data.header.tokens[token];
    this.close();
    this.look();
    this.at = 0;
    this.go();
  }

  /** Updates the places where the token is among the candidates of the site and layers shown. */
  look() {
    this.places = occurrences(this.data, this.on.site(), this.on.layers(), this.token);
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
    const { positions, layers } = this.data.header;
    this.status.textContent = place
      ? `${this.at + 1} of ${this.places.length} · position ${integer(positions[place.position])}, layer ${layers[place.layer]}`
      : `not in the top ${this.data.k} of the layers on show`;
    this.status.title = `Places at which it enters the top ${this.data.k}`;
    this.steps.hidden = false;
    this.on.onFound(this.token, place);
  }

  clear() {
    this.token = -1;
    this.places = [];
    this.offered = [];
    this.input.value = "";
    this.status.textContent = "";
    this.steps.hidden = true;
    this.on.onFound(-1, null);
  }

  focus() {
    this.input.focus();
    this.input.select();
  }
}
