import { button, make } from "./dom.js";
import { cut, integer } from "./format.js";

/**
 * Pins: tokens at a position, or cells (their top token). Stored by labels and vocabulary index, so that a pin means the
 * same in another run.
 *
 * @typedef {import("./frame.js").Cell} Cell
 * @typedef {{id: number, position: number, site: string, layer: number | null, name: string}} Pinned `layer`: of a pinned cell
 * @typedef {Pinned & {colour: number}} Pin the same for as long as it is pinned
 */

const MOST_PINS = 6; // the number of distinguishable colours

export class Pins {
  /**
   * @param {{onChange: () => void, onGo: (pin: Pin) => void, onLeave: () => void, onFull: (words: string) => void}} on
   *   `onLeave`: the focused element is gone, so the focus must move elsewhere; `onFull`: the oldest pin has made room
   */
  constructor(on) {
    this.on = on;
    /** @type {Pin[]} */
    this.list = [];
    this.el = make("div", "lens-pins");
    this.followed = make("span", "lens-chips");
    this.pinned = make("span", "lens-chips");
    this.el.append(this.followed, this.pinned);
    this.drawn = this.list;
  }

  /** Adds pins, or removes them if all exist. @param {Pinned[]} pins */
  toggle(...pins) {
    const among = (/** @type {Pinned[]} */ list, /** @type {Pinned} */ pin) => list.some((p) => p.id === pin.id && p.position === pin.position && p.site === pin.site && p.layer === pin.layer);
    const added = pins.filter((pin) => !among(this.list, pin));
    const had = added.length ? this.list : this.list.filter((pin) => !among(pins, pin));
    const over = Math.max(0, had.length + added.length - MOST_PINS);
    const gone = had.slice(0, over).map(({ name, position }) => `${name} at ${integer(position)}`);
    const kept = had.slice(over);
    const free = Array.from({ length: MOST_PINS }, (_, colour) => colour).filter((colour) => !kept.some((pin) => pin.colour === colour));
    this.list = [...kept, ...added.map((pin, i) => ({ ...pin, colour: free[i] }))];
    this.on.onChange();
    if (gone.length) this.on.onFull(`${MOST_PINS} pins at most: ${gone.join(", ")} ${gone.length > 1 ? "are" : "is"} unpinned`);
  }

  clear() {
    this.list = [];
    this.on.onChange();
    this.on.onLeave();
  }

  /** Removes a pin, and its button with it: the next pin's button gets the focus. @param {Pin} pin @param {number} at */
  remove(pin, at) {
    this.toggle(pin);
    const rest = /** @type {NodeListOf<HTMLElement>} */ (this.el.querySelectorAll(".lens-chip-off"));
    if (rest.length) rest[Math.min(at, rest.length - 1)].focus({ preventScroll: true });
    else this.on.onLeave();
  }

  /** Draws the chips, which are the chart's legend too. @param {{run: number, name: string, what: string}[]} followed what the chart shows without a pin */
  draw(followed) {
    const chips = followed.map(({ run, name, what }) => {
      const chip = make("span", "lens-chip lens-followed");
      chip.append(make("i", `lens-swatch lens-follow-${run}`), make("span", "lens-token", cut(name, 24)), make("small", "", what));
      return chip;
    });
    this.followed.replaceChildren(...chips);
    // These change with every cell; unchanged pins keep their elements, and so the focus in them.
    if (this.drawn === this.list) return;
    this.drawn = this.list;
    const pins = this.list.map((pin, i) => this.chip(pin, i));
    if (pins.length > 1) pins.push(button("clear", "Clear: unpin all", () => this.clear(), "lens-small"));
    this.pinned.replaceChildren(...pins);
  }

  /** @param {Pin} pin @param {number} i */
  chip(pin, i) {
    const chip = make("span", "lens-chip");
    const where = `${pin.site}${pin.layer === null ? "" : ` · layer ${pin.layer}`} · position ${integer(pin.position)}`;
    const go = button("", `Go to ${where}`, () => this.on.onGo(pin), "lens-chip-go");
    go.removeAttribute("aria-label"); // its text is its name
    go.append(make("i", `lens-swatch lens-line-${pin.colour}`), make("span", "lens-token", cut(pin.name, 24)), make("small", "", `${pin.layer === null ? "" : `L${pin.layer} `}@ ${integer(pin.position)}`));
    chip.append(go, button("×", `Unpin ${pin.name}`, () => this.remove(pin, i), "lens-chip-off"));
    return chip;
  }
}
