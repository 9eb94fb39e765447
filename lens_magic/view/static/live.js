import { button, make } from "./dom.js";
import { plural } from "./format.js";

/** A run in progress: its text as it is generated, and a button that stops it. */

export class LiveStrip {
  /** @param {() => void} onStop */
  constructor(onStop) {
    this.el = make("div", "lens-live");
    this.text = make("p", "lens-live-text", "");
    this.text.dir = "auto";
    this.text.setAttribute("aria-live", "off"); // screen readers should read the finished text, not every piece
    this.rows = make("span", "", ""); // no status, which would be read with every row
    this.state = make("span", "lens-live-state", "");
    this.state.setAttribute("role", "status");
    this.stop = button("Stop", "Stop generating; what there is by then stays", () => {
      this.stop.disabled = true;
      this.state.textContent = "stopping …";
      onStop();
    }, "lens-stop");
    const side = make("div", "lens-live-side");
    side.append(this.rows, this.state, this.stop);
    this.el.append(this.text, side);
  }

  /** @param {string} text all of it so far @param {number} positions shown */
  show(text, positions) {
    const atEnd = this.text.scrollTop + this.text.clientHeight >= this.text.scrollHeight - 4;
    this.text.textContent = text;
    if (atEnd) this.text.scrollTop = this.text.scrollHeight;
    this.rows.textContent = positions ? plural(positions, "row") : "";
  }

  /** Shows that the run has failed, and removes Stop. */
  end() {
    this.stop.disabled = this.stop.hidden = true;
    this.state.textContent = "not finished";
  }
}
