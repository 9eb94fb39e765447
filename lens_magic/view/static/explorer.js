import { LensData } from "./data.js";
import { make, VirtualGrid } from "./grid.js";
import { gridModel, ZOOMS } from "./cells.js";
import { Detail } from "./detail.js";
import { legend, Toolbar } from "./toolbar.js";

/**
 * The explorer: a packed run in, a table in `el` out.
 *
 * @typedef {{site: string, layer: number, position: number}} Cell labels, not indices
 */

class View {
  /** @param {LensData} data @param {{onSelect?: (cell: Cell) => void}} callbacks */
  constructor(el, data, callbacks) {
    this.data = data;
    this.callbacks = callbacks;
    const { header } = data;
    const site = header.sites.indexOf("resid_post");
    this.view = { site: site < 0 ? header.sites.length - 1 : site, zoom: 1, transposed: false };
    this.grid = new VirtualGrid({ onHover: () => this.detailed(), onMove: () => this.moved() });
    this.detail = new Detail(data);
    this.toolbar = new Toolbar(header, this.grid.id, {
      onSite: (i) => this.set({ site: i }),
      onZoom: (step) => this.set({ zoom: this.view.zoom + step }),
      onSwap: () => this.set({ transposed: !this.view.transposed }),
    });
    const body = make("div", "lens-body");
    body.append(this.grid.el, this.detail.el);
    this.root = make("div", "lens-root");
    // Lumino (JupyterLab) would otherwise take the arrow keys for the notebook's own cells.
    this.root.dataset.lmSuppressShortcuts = "true";
    this.root.append(this.toolbar.el, body, legend());
    el.append(this.root);
    this.cell = { layer: header.layers.length - 1, position: 0 };
    this.draw();
  }

  /** Changes site, zoom or orientation; the active cell stays the same one. */
  set(change) {
    const only = Object.keys(change).join();
    Object.assign(this.view, change);
    this.draw(only !== "site");
    if (only === "site") this.callbacks.onSelect?.(this.selected());
  }

  draw(follow = false) {
    this.model = gridModel(this.data, this.view);
    this.root.className = `lens-root ${ZOOMS[this.view.zoom].className}`;
    const kept = [this.grid.el.scrollTop, this.grid.el.scrollLeft];
    this.grid.setModel(this.model, this.model.fromCell(this.cell));
    if (follow) this.grid.setActive(this.model.fromCell(this.cell));
    else [this.grid.el.scrollTop, this.grid.el.scrollLeft] = kept;
    this.toolbar.update(this.view, ZOOMS.length);
    this.detailed();
  }

  /** The hovered cell in detail, or else the active one. */
  detailed() {
    this.detail.show({ site: this.view.site, ...this.model.toCell(...this.grid.lit()) });
  }

  moved() {
    this.cell = this.model.toCell(...this.grid.active);
    this.detailed();
    this.callbacks.onSelect?.(this.selected());
  }

  /** @returns {Cell} */
  selected() {
    const { sites, layers, positions } = this.data.header;
    return { site: sites[this.view.site], layer: layers[this.cell.layer], position: positions[this.cell.position] };
  }

  /** Goes to a cell without reporting it back. @param {Partial<Cell>} cell */
  select(cell) {
    const { sites, layers, positions } = this.data.header;
    const now = this.selected();
    const wanted = { ...now, ...cell };
    if (["site", "layer", "position"].every((key) => wanted[key] === now[key])) return;
    const [site, layer, position] = [
      sites.indexOf(wanted.site),
      layers.indexOf(wanted.layer),
      positions.indexOf(wanted.position),
    ];
    if (site < 0 || layer < 0 || position < 0) return;
    this.view.site = site;
    this.cell = { layer, position };
    this.draw(true);
  }

  destroy() {
    this.grid.destroy();
    this.root.remove();
  }
}

function empty(el, header) {
  const root = make("div", "lens-root");
  const missing = ["positions", "layers", "sites"].find((axis) => !header[axis].length) ?? "candidates";
  root.append(make("p", "lens-empty", `${header.model}: this run has no ${missing}, so there is nothing to show.`));
  el.append(root);
  return { select() {}, selected: () => null, destroy: () => root.remove() };
}

/**
 * Draws a packed run into `el`.
 *
 * @param {HTMLElement} el
 * @param {import("./data.js").Packed} packed
 * @param {{onSelect?: (cell: Cell) => void}} [callbacks]
 * @returns {{select: (cell: Partial<Cell>) => void, selected: () => Cell | null, destroy: () => void}}
 */
export function mount(el, packed, callbacks = {}) {
  const data = new LensData(packed);
  const { positions, layers, sites, k } = data.header;
  if (!positions.length || !layers.length || !sites.length || !k) return empty(el, data.header);
  return new View(el, data, callbacks);
}

/** anywidget's entry: the model's traits are the packed run, `selected` goes both ways. */
function render({ model, el }) {
  const open = () =>
    mount(el, { header: model.get("header"), buffers: model.get("buffers") }, {
      onSelect(cell) {
        model.set("selected", cell);
        model.save_changes();
      },
    });
  // Order does not matter to a rule: the static table may come into the document before or after this view.
  const rule = make("style", "", `[data-lens-for="${model.get("fallback")}"] { display: none; }`);
  el.ownerDocument.head.append(rule);
  let view = open();
  const follow = () => view.select(model.get("selected"));
  const reopen = () => {
    view.destroy();
    view = open();
    follow();
  };
  follow();
  model.on("change:selected", follow);
  model.on("change:buffers", reopen);
  return () => {
    model.off("change:selected", follow);
    model.off("change:buffers", reopen);
    rule.remove();
    view.destroy();
  };
}

export default { render };
