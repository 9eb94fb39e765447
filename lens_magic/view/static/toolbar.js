import { button, labelled, make, segments } from "./dom.js";
import { integer, isolated, modelNames, plural } from "./format.js";
import { APART, SHADINGS, topOf } from "./measures.js";
import { chosenLayers, writtenLayers } from "./query.js";

/**
 * The controls above the grid.
 *
 * @typedef {import("./frame.js").View} View
 * @typedef {import("./frame.js").Labels} Labels
 * @typedef {import("./frame.js").Cell} Cell
 * @typedef {{onView: (change: Partial<View>) => void, onToken: (step: number) => void, onExport: (what: string) => void}} ToolbarCallbacks
 */

const ALL = "all";
const EXPORTS = {
  text: ["Copy as text", "The selected cells' tokens (Ctrl+C)"],
  tsv: ["Copy as table", "The selected cells with their numbers, tab-separated; of one cell its candidates. An apostrophe keeps spreadsheets from computing a token"],
  svg: ["Save as SVG", "The selected cells, or all in view, as a vector graphic"],
  png: ["Save as PNG", "The same as an image"],
};

/** @param {string} name @param {[string, string][]} options values and texts @param {(value: string) => void} onChoose */
function choice(name, options, onChoose) {
  const el = make("select", "lens-select");
  el.setAttribute("aria-label", name);
  el.title = name; // where its label has no room
  for (const [value, text] of options) {
    const option = make("option", "", text);
    option.value = value;
    el.append(option);
  }
  el.addEventListener("change", () => onChoose(el.value));
  return el;
}

export class Toolbar {
  /**
   * @param {import("./data.js").LensData[]} datas @param {Labels} labels @param {string} id unique in the document
   * @param {ToolbarCallbacks} on
   */
  constructor(datas, labels, id, on) {
    this.labels = labels;
    this.shown = labels.layers;
    this.on = on;
    const { header } = datas[0];
    this.el = make("div", "lens-bar");
    this.title = make("div", "lens-title");
    this.sizes = make("span", "");
    const models = [...new Set(datas.map((data) => data.header.model))];
    const name = make("strong", "", modelNames(models).join(" and "));
    name.title = models.join(" and ");
    this.title.append(name, this.sizes);
    // Of two runs each table says its own.
    if (header.how && datas.length === 1) this.title.append(make("span", "lens-how", header.how));
    this.said = make("div", "lens-said", "");
    this.said.setAttribute("role", "status");
    this.size(labels, header.interrupted);

    const several = labels.sites.length > 1 ? [ALL] : [];
    this.sites = segments("Site", `${id}-site`, [...labels.sites, ...several], (i) => this.site(i), (i) => (i < labels.sites.length ? "Ctrl-click, or Shift with an arrow and then Space: beside the others" : "All sites side by side"));
    this.sites.el.addEventListener("click", (event) => this.addSite(event), true);
    this.sites.el.addEventListener("keydown", (event) => this.walkSites(event));
    this.mode = segments("View", `${id}-mode`, ["table", "one token"], (i) => on.onView({ mode: i ? "token" : "table" }), (i) =>
      i ? "One token: its candidates at every layer, the sites side by side (Enter)" : "All tokens, the likeliest in each cell (Escape)",
    );
    const tools = make("div", "lens-tools");
    this.swap = button("⇄", "Swap rows and columns", () => on.onView({ transposed: !this.view?.transposed }));
    this.less = button("−", "Smaller cells", () => on.onView({ zoom: (this.view?.zoom ?? 1) - 1 }));
    this.more = button("+", "Larger cells", () => on.onView({ zoom: (this.view?.zoom ?? 1) + 1 }));
    tools.append(this.swap, this.less, this.more);
    const pairs = datas.length > 1 ? [this.pairs(id)] : [];
    this.el.append(this.title, this.sites.el, this.mode.el, ...pairs, tools, this.menu(), this.said);
    this.controls = make("div", "lens-controls");
    this.controls.append(...this.fields(datas, labels));
  }

  /** Shows the size of the run. @param {Labels} labels @param {boolean} interrupted */
  size(labels, interrupted) {
    const size = `${plural(labels.positions.length, "position")} × ${plural(labels.layers.length, "layer")}`;
    this.sizes.textContent = interrupted ? `${size} · interrupted` : size;
  }

  menu() {
    const el = make("details", "lens-menu");
    const summary = make("summary", "lens-button", "⋯");
    summary.title = "Copy and save";
    summary.setAttribute("aria-label", "Copy and save");
    const items = make("div", "lens-menu-items");
    for (const [what, [text, hint]] of Object.entries(EXPORTS)) {
      const item = button(text, hint, () => {
        el.open = false;
        summary.focus(); // the focused item is hidden now
        this.on.onExport(what);
      }, "lens-menu-item");
      item.removeAttribute("aria-label");
      items.append(item);
    }
    el.append(summary, items);
    el.addEventListener("focusout", (event) => {
      if (!el.contains(/** @type {Node | null} */ (event.relatedTarget))) el.open = false;
    });
    el.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !el.open) return;
      el.open = false;
      summary.focus();
      event.stopPropagation();
    });
    return el;
  }

  /** @param {string} id */
  pairs(id) {
    this.pairing = segments("Two runs", `${id}-pair`, ["side by side", "difference"], (i) => this.on.onView({ pairing: i ? "difference" : "beside" }));
    return this.pairing.el;
  }

  /** @param {import("./data.js").LensData[]} datas @param {Labels} labels @returns {HTMLElement[]} */
  fields(datas, labels) {
    const [data, other] = datas;
    const { tracked, tokens } = data.header;
    /** @type {[string, string][]} */
    const shadings = Object.entries(SHADINGS).filter(([name]) => name !== "token");
    if (other?.hasApart) shadings.push(["apart", APART]);
    for (const row of tracked) shadings.push([`token:${data.arrays.ids[row]}`, `probability of ${tokens[row]}`]);
    this.shade = choice("Shade by", shadings, (value) => {
      const [shade, token] = value.split(":");
      this.on.onView({ shade: /** @type {View["shade"]} */ (shade), ...(token ? { token: Number(token) } : {}) });
    });
    this.over = choice("Probability over", [["all", "whole vocabulary"], ["k", `${topOf(datas)} only`]], (value) => this.on.onView({ over: value === "k" ? "k" : "all" }));
    const filter = (this.layers = make("input", "lens-input lens-layers"));
    Object.assign(filter, { type: "text", placeholder: `${labels.layers[0]}–${labels.layers[labels.layers.length - 1]}`, spellcheck: false });
    filter.title = "Layers on show: 0-4, 5-, -1, 0,8,-1, ::4";
    filter.addEventListener("change", () => this.filter(filter));
    filter.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") this.filter(filter);
    });
    const stepper = make("span", "lens-tools");
    this.position = make("output", "lens-stepper", "");
    stepper.append(button("‹", "Previous token ( [ )", () => this.on.onToken(-1)), this.position, button("›", "Next token ( ] )", () => this.on.onToken(1)));
    this.token = make("span", "lens-field"); // not a <label>, in which any click would click the first button
    this.token.append(make("span", "lens-label", "Token"), stepper);
    this.shading = labelled("Shade", this.shade);
    this.shading.classList.add("lens-wide");
    const fields = [this.shading, this.token, labelled("Probability over", this.over)];
    if (labels.layers.length > 1) fields.push(labelled("Layers", filter));
    return fields;
  }

  /** @param {HTMLInputElement} input */
  filter(input) {
    const layers = chosenLayers(input.value, this.labels.layers);
    input.setAttribute("aria-invalid", String(!layers));
    const [first, last] = [this.labels.layers[0], this.labels.layers[this.labels.layers.length - 1]];
    input.setCustomValidity(layers ? "" : `No such layers: there are ${first} to ${last}, as 0-4, 5-, -1, 0,8,-1 or ::4`);
    if (layers) this.on.onView({ layers });
    else input.reportValidity();
  }

  /** @param {number} i */
  site(i) {
    const { sites } = this.labels;
    this.on.onView({ sites: i < sites.length ? [sites[i]] : sites });
  }

  /** With Shift an arrow moves the focus alone; otherwise it takes the choice along. @param {KeyboardEvent} event */
  walkSites(event) {
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!by || !event.shiftKey) return;
    event.preventDefault();
    const { inputs } = this.sites;
    inputs[(inputs.indexOf(/** @type {HTMLInputElement} */ (event.target)) + by + inputs.length) % inputs.length].focus();
  }

  /** Ctrl-click, or Space with Shift, adds a site to those shown, or removes it. @param {MouseEvent} event */
  addSite(event) {
    const label = /** @type {HTMLElement} */ (event.target).closest("label");
    const i = label && label.parentElement ? [...label.parentElement.children].indexOf(label) : -1;
    const site = this.labels.sites[i];
    if (!site || !(event.ctrlKey || event.metaKey || event.shiftKey) || !this.view) return;
    event.preventDefault();
    event.stopPropagation();
    const had = this.view.sites.includes(site);
    const sites = this.labels.sites.filter((s) => (s === site ? !had : this.view?.sites.includes(s)));
    // Deferred, because a prevented click restores the radio button that was checked before.
    if (sites.length) setTimeout(() => this.on.onView({ sites }));
  }

  /** @param {View} view @param {number} zooms @param {Cell} cell @param {string} next @param {string} focus text of the token searched for */
  update(view, zooms, cell, next, focus) {
    this.view = view;
    const all = view.sites.length === this.labels.sites.length;
    this.sites.inputs.forEach((input, i) => {
      const site = this.labels.sites[i];
      input.checked = site ? view.sites.length === 1 && view.sites[0] === site : all && view.sites.length > 1;
      input.parentElement?.classList.toggle("lens-on", input.checked || (!all && view.sites.includes(site)));
    });
    this.mode.inputs.forEach((input, i) => (input.checked = (view.mode === "token") === (i === 1)));
    this.pairing?.inputs.forEach((input, i) => (input.checked = (view.pairing === "difference") === (i === 1)));
    this.swap.setAttribute("aria-pressed", String(view.transposed));
    for (const [size, other, last] of /** @type {const} */ ([[this.less, this.more, 0], [this.more, this.less, zooms - 1]])) {
      // A button that is disabled loses the focus.
      if (view.zoom === last && document.activeElement === size) other.focus();
      size.disabled = view.zoom === last;
    }
    if (!this.shade || !this.shading || !this.over || !this.layers || !this.token || !this.position) return;
    // Candidates are shaded by their own probability; the table below must not move when one takes the other's place.
    this.token.hidden = view.mode !== "token";
    this.shading.hidden = view.mode === "token";
    this.position.textContent = `${integer(cell.position)} ${isolated(next)}`;
    if (focus) this.offer(view.token, focus);
    const value = view.shade === "token" ? `token:${view.token}` : view.shade;
    this.shade.value = value;
    this.over.value = view.over;
    if (view.layers !== this.shown) this.named(this.layers, view.layers);
  }

  /** Shows which layers are selected, keeping the reader's own notation if it means the same. @param {HTMLInputElement} input @param {number[]} layers */
  named(input, layers) {
    this.shown = layers;
    if (String(chosenLayers(input.value, this.labels.layers)) === String(layers)) return;
    input.value = writtenLayers(layers, this.labels.layers);
    input.setAttribute("aria-invalid", "false");
    input.setCustomValidity("");
  }

  /** Offers the token searched for as one to shade cells by. @param {number} token vocabulary index @param {string} name */
  offer(token, name) {
    if (!this.shade || [...this.shade.options].some((option) => option.value === `token:${token}`)) return;
    const option = make("option", "", `probability of ${name}`);
    option.value = `token:${token}`;
    this.shade.append(option);
  }
}
