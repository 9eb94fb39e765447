import { make } from "./dom.js";
import { LensData } from "./data.js";
import { Explorer } from "./explorer.js";
import { LiveStrip } from "./live.js";

/**
 * The two entry points: `mount` for pages, `default.render` for anywidget.
 *
 * @typedef {import("./data.js").Packed} Packed
 * @typedef {import("./data.js").Header} Header
 * @typedef {import("./frame.js").Cell} Cell
 * @typedef {{select: (cell: Partial<Cell>) => void, state: () => import("./stage.js").State | undefined, destroy: () => void}} Mounted
 * @typedef {{get: (name: string) => any, set: (name: string, value: unknown) => void, save_changes: () => void,
 *   send: (content: unknown) => void, on: (event: string, callback: Function) => void, off: (event: string, callback: Function) => void}} Model
 * @typedef {{type: "rows", seq: number, text: string, names: string[], over: boolean} & import("./data.js").Rows} RowsMessage
 */

/** @param {HTMLElement} el @param {Header} header @returns {Mounted} */
function empty(el, header) {
  const root = make("div", "lens-root");
  const axes = /** @type {const} */ (["positions", "layers", "sites"]);
  const missing = axes.find((axis) => !header[axis].length) ?? "candidates";
  root.append(make("p", "lens-empty", `${header.model}: this run has no ${missing}, so there is nothing to show.`));
  el.append(root);
  return { select() {}, state: () => undefined, destroy: () => root.remove() };
}

/** @param {Header} header */
const nothing = (header) => !header.positions.length || !header.layers.length || !header.sites.length || !header.k;

/**
 * Draws a packed run into `el`.
 *
 * @param {HTMLElement} el
 * @param {Packed} packed
 * @param {import("./stage.js").Options} [options] `compare`: a second run beside it
 * @returns {Mounted}
 */
export function mount(el, packed, options = {}) {
  if (nothing(packed.header)) return empty(el, packed.header);
  const packs = options.compare && !nothing(options.compare.header) ? [packed, options.compare] : [packed];
  return new Explorer(el, packs.map((pack) => new LensData(pack)), options);
}

/** A run that grows with messages until the kernel says that it is finished. */
class Live {
  /** @param {HTMLElement} el @param {Packed} packed still without positions @param {Model} model @param {(cell: Cell) => void} onSelect */
  constructor(el, packed, model, onSelect) {
    this.el = el;
    this.model = model;
    this.onSelect = onSelect;
    this.data = new LensData(packed);
    this.text = "";
    this.seen = 0; // messages
    this.asked = 0; // the message from which they were last requested again, and when
    this.askedAt = performance.now();
    this.strip = new LiveStrip(() => {
      model.send({ type: "stop" });
      this.view?.grids[0].el.focus({ preventScroll: true }); // the button is disabled now, and soon gone
    });
    this.root = make("div", "lens-root lens-waiting");
    this.root.append(this.strip.el);
    el.append(this.root);
    this.hear = (/** @type {RowsMessage} */ message, /** @type {import("./data.js").Bytes[]} */ buffers) => this.take(message, buffers);
    model.on("msg:custom", this.hear);
    // Request what was sent before this view existed.
    model.send({ type: "since", seq: 0 });
  }

  /** @param {RowsMessage} message @param {import("./data.js").Bytes[]} buffers */
  take(message, buffers) {
    if (message.type !== "rows" || message.seq < this.seen) return;
    if (message.seq > this.seen) {
      // Ask again after a while: a request made before the browser had a subshell waits behind the running cell.
      if (this.asked === this.seen && performance.now() - this.askedAt < 1000) return;
      this.asked = this.seen;
      this.askedAt = performance.now();
      this.model.send({ type: "since", seq: this.seen });
      return;
    }
    this.seen += 1;
    this.text += message.text;
    if (message.positions.length) {
      this.data.append(message, Object.fromEntries(message.names.map((name, i) => [name, buffers[i]])));
      if (this.view) this.view.grown();
      else {
        this.root.remove();
        this.view = new Explorer(this.el, [this.data], { strip: this.strip.el, onSelect: this.onSelect });
      }
    }
    this.strip.show(this.text, this.data.header.positions.length);
    if (message.over) this.strip.end();
  }

  /** @param {Partial<Cell>} cell */
  select(cell) {
    this.view?.select(cell);
  }

  /** Who has followed the newest row has not chosen where to be: to them the finished run opens as any other. */
  state() {
    const state = this.view?.state();
    return state && this.view?.atEnd ? { ...state, begun: false } : state;
  }

  destroy() {
    this.model.off("msg:custom", this.hear);
    this.view?.destroy();
    this.root.remove();
  }
}

/** anywidget's entry point: the model's traits are the packed runs; `selected` is synced both ways. @param {{model: Model, el: HTMLElement}} context */
function render({ model, el }) {
  const onSelect = (/** @type {Cell} */ cell) => {
    model.set("selected", cell);
    model.save_changes();
  };
  const packed = (/** @type {string} */ prefix) => ({ header: model.get(`${prefix}header`), buffers: model.get(`${prefix}buffers`) });
  const open = (/** @type {import("./stage.js").State | undefined} */ state) => {
    if (model.get("live")) return new Live(el, packed(""), model, onSelect);
    const other = packed("other_");
    return mount(el, packed(""), { onSelect, state, compare: other.header?.schema ? other : undefined });
  };
  // A style rule works in either order: the static table may enter the document before or after this view.
  const rule = make("style", "", `[data-lens-for="${model.get("fallback")}"] { display: none; }`);
  el.ownerDocument.head.append(rule);
  /** @type {Mounted} */
  let view = open(undefined);
  const follow = () => view.select(model.get("selected"));
  const reopen = () => {
    const state = view.state();
    view.destroy();
    view = open(state);
    follow();
  };
  // A run that finished without a row keeps its first buffers, so no change of theirs is reported.
  const finished = () => {
    if (view instanceof Live && nothing(model.get("header"))) reopen();
  };
  follow();
  model.on("change:selected", follow);
  model.on("change:buffers", reopen);
  model.on("change:live", finished);
  return () => {
    model.off("change:selected", follow);
    model.off("change:buffers", reopen);
    model.off("change:live", finished);
    rule.remove();
    view.destroy();
  };
}

export default { render };
