import { button, make } from "./dom.js";
import { plural } from "./format.js";

/** A run that is still being made: its text as it comes, and a button that asks for it to stop. */

export class LiveStrip {
  /** @param {() => void} onStop */
  constructor(onStop) {
    this.el = make("div", "lens-live");
    this.text = make("p", "lens-live-text", "");
    this.text.dir = "auto";
    this.text.setAttribute("aria-live", "off"); // a screen reader reads the whole when it is there, not every piece
    this.state = make("span", "lens-live-state", "");
    this.state.setAttribute("role", "status");
    this.stop = button("Stop", "Stop generating; what there is by then stays", () => {
      this.stop.disabled = true;
      this.state.textContent = "stopping …";
      onStop();
    }, "lens-stop");
    const side = make("div", "lens-live-side");
    side.append(this.state, this.stop);
    this.el.append(this.text, side);
  }

  /** @param {string} text all of it so far @param {number} positions on show */
  show(text, positions) {
    const atEnd = this.text.scrollTop + this.text.clientHeight >= this.text.scrollHeight - 4;
    this.text.textContent = text;
    if (atEnd) this.text.scrollTop = this.text.scrollHeight;
    if (!this.stop.disabled) this.state.textContent = positions ? plural(positions, "row") : "";
  }

  /** The run has failed: there is nothing to stop any more. */
  end() {
    this.stop.disabled = this.stop.hidden = true;
    this.state.textContent = "not finished";
  }
}
