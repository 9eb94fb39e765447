import { make } from "./grid.js";

/** Title, switch between sites, orientation and size above the grid; the legend below it. */

function button(text, hint, onClick) {
  const el = make("button", "lens-button", text);
  el.type = "button";
  el.title = hint;
  el.setAttribute("aria-label", hint);
  el.addEventListener("click", onClick);
  return el;
}

/** A segmented control of native radio buttons, whose keyboard handling it keeps. */
function siteSwitch(sites, group, onSite) {
  const el = make("div", "lens-sites");
  el.setAttribute("role", "radiogroup");
  el.setAttribute("aria-label", "Site");
  const inputs = sites.map((site, i) => {
    const label = make("label");
    const input = make("input");
    input.type = "radio";
    input.name = group;
    input.value = site;
    input.addEventListener("change", () => onSite(i));
    label.append(input, make("span", "", site));
    el.append(label);
    return input;
  });
  return { el, inputs };
}

function plural(n, noun) {
  return `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;
}

export class Toolbar {
  /**
   * @param {import("./data.js").Header} header
   * @param {string} group name of the radio group, unique in the document
   * @param {{onSite: (i: number) => void, onZoom: (step: number) => void, onSwap: () => void}} on
   */
  constructor(header, group, on) {
    this.el = make("div", "lens-bar");
    const title = make("div", "lens-title");
    const size = `${plural(header.positions.length, "position")} × ${plural(header.layers.length, "layer")}`;
    title.append(make("strong", "", header.model), make("span", "", header.interrupted ? `${size} · interrupted` : size));
    this.sites = siteSwitch(header.sites, group, on.onSite);
    const tools = make("div", "lens-tools");
    this.swap = button("⇄", "Swap rows and columns", on.onSwap);
    this.less = button("−", "Smaller cells", () => on.onZoom(-1));
    this.more = button("+", "Larger cells", () => on.onZoom(1));
    tools.append(this.swap, this.less, this.more);
    this.el.append(title, this.sites.el, tools);
  }

  update({ site, zoom, transposed }, zooms) {
    this.sites.inputs.forEach((input, i) => (input.checked = i === site));
    this.swap.setAttribute("aria-pressed", String(transposed));
    this.less.disabled = zoom === 0;
    this.more.disabled = zoom === zooms - 1;
  }
}

export function legend() {
  const el = make("div", "lens-legend");
  const scale = make("span", "lens-scale");
  scale.append(make("span", "", "0"), make("i", "lens-ramp"), make("span", "", "1"));
  const hit = make("span", "lens-key");
  hit.append(make("i", "lens-hit-sample", "token"), make("span", "", "is the token that came next"));
  el.append(make("span", "", "probability of the top token"), scale, hit);
  return el;
}
