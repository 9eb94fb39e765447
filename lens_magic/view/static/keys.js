/** Keyboard movement in a table. */

/**
 * Returns the cell that a key moves to; null if it is not a movement key.
 *
 * @param {{key: string, altKey: boolean, ctrlKey: boolean, metaKey: boolean}} event
 * @param {{active: number[], rows: number, cols: number, page: number}} table `page`: rows that a page key moves by
 * @returns {[number, number] | null}
 */
export function destination({ key, altKey, ctrlKey, metaKey }, { active: [r, c], rows, cols, page }) {
  if (altKey) return null;
  const ends = ctrlKey || metaKey;
  /** @type {Record<string, [number, number]>} */
  const moves = {
    ArrowUp: [ends ? 0 : r - 1, c],
    ArrowDown: [ends ? rows - 1 : r + 1, c],
    ArrowLeft: [r, ends ? 0 : c - 1],
    ArrowRight: [r, ends ? cols - 1 : c + 1],
    PageUp: [r - page, c],
    PageDown: [r + page, c],
    Home: [ends ? 0 : r, 0],
    End: [ends ? rows - 1 : r, cols - 1],
  };
  const to = moves[key];
  if (!to) return null;
  return [Math.max(0, Math.min(rows - 1, to[0])), Math.max(0, Math.min(cols - 1, to[1]))];
}
