import { make } from "./dom.js";
import { isolated } from "./format.js";

/** The legend of colours and marks, below the grid. */

export class Legend {
  constructor() {
    this.el = make("div", "lens-legend");
    this.what = make("span", "lens-legend-what", "");
    this.ramp = make("i", "lens-ramp");
    this.low = make("span", "", "");
    this.high = make("span", "", "");
    const scale = make("span", "lens-scale");
    scale.append(this.low, this.ramp, this.high);
    this.hit = this.key("lens-hit-sample", "token", "is the token that came next");
    this.settles = this.key("lens-settles-sample", "token", "stays first from here on");
    this.changed = this.key("lens-changed-sample", "a → b", "the first token changes");
    this.found = this.key("lens-found-sample", "token", "");
    this.el.append(this.what, scale, this.hit, this.settles, this.changed, this.found);
  }

  /** @param {string} className @param {string} sample @param {string} text */
  key(className, sample, text) {
    const el = make("span", "lens-key");
    el.append(make("i", className, sample), make("span", "", text));
    return el;
  }

  /**
   * @param {import("./cells.js").Scale} scale
   * @param {{settles: boolean, difference: boolean, found: string}} shown
   */
  show({ label, ramp, low, high }, { settles, difference, found }) {
    this.what.textContent = label;
    this.low.textContent = low;
    this.high.textContent = high;
    this.ramp.className = `lens-ramp lens-ramp-${ramp}`;
    this.hit.hidden = difference;
    this.settles.hidden = difference || !settles;
    this.changed.hidden = !difference;
    this.found.hidden = !found;
    this.found.children[1].textContent = `${isolated(found)} is among the candidates`;
  }
}
