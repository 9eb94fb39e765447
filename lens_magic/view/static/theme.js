/**
 * Colours for canvases and saved pictures, where style sheets do not apply.
 *
 * @typedef {{sure: number[], unsure: number[], more: number[], less: number[], depth: Record<string, number>,
 *   fg: string, bg: string, muted: string, line: string, accent: string, mono: string}} Palette
 */

/** The colours in effect at an element. @param {HTMLElement} el @returns {Palette} */
export function palette(el) {
  const style = getComputedStyle(el);
  const read = (/** @type {string} */ name) => style.getPropertyValue(`--lens-${name}`).trim();
  const triple = (/** @type {string} */ name) => read(name).split(/\s+/).map(Number);
  const ramps = ["sure", "unsure", "more", "less"];
  return {
    sure: triple("sure"),
    unsure: triple("unsure"),
    more: triple("more"),
    less: triple("less"),
    depth: Object.fromEntries(ramps.map((name) => [name, Number(read(`depth-${name}`)) || 0.6])),
    // Custom properties may still be references to others, so these two are read from the properties that use them.
    fg: style.color,
    bg: style.backgroundColor,
    muted: read("own-muted"),
    line: read("own-line"),
    accent: read("accent"),
    mono: 'ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace',
  };
}

/**
 * Calls back when the host's theme or the reader's preference changes.
 * @param {HTMLElement} el @param {() => void} callback @returns {() => void} stops it
 */
export function onTheme(el, callback) {
  const { body, documentElement, defaultView } = el.ownerDocument;
  // A frame later, and again after 300 ms: hosts announce a theme before they load its style sheet.
  const later = () => {
    requestAnimationFrame(callback);
    setTimeout(callback, 300);
  };
  const observer = new MutationObserver(later);
  for (const node of [body, documentElement]) {
    observer.observe(node, { attributes: true, attributeFilter: ["class", "data-jp-theme-light", "data-jp-theme-name", "data-theme", "data-vscode-theme-kind"] });
  }
  const media = defaultView?.matchMedia("(prefers-color-scheme: dark)");
  media?.addEventListener("change", later);
  return () => {
    observer.disconnect();
    media?.removeEventListener("change", later);
  };
}
