/** Helpers that create DOM elements. */

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {string} [className]
 * @param {string} [text]
 * @returns {HTMLElementTagNameMap[K]}
 */
export function make(tag, className, text) {
  const el = document.createElement(tag);
  if (className) el.className = className;
  if (text !== undefined) el.textContent = text;
  return el;
}

/**
 * @param {string} tag
 * @param {Record<string, string | number>} [attributes]
 * @param {string} [text]
 * @returns {SVGElement}
 */
export function drawn(tag, attributes = {}, text) {
  const el = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) el.setAttribute(name, String(value));
  if (text !== undefined) el.textContent = text;
  return el;
}

/**
 * @param {string} text
 * @param {string} hint
 * @param {(event: MouseEvent) => void} onClick
 * @param {string} [className]
 */
export function button(text, hint, onClick, className = "lens-button") {
  const el = make("button", className, text);
  el.type = "button";
  el.title = hint;
  el.setAttribute("aria-label", hint);
  el.addEventListener("click", onClick);
  return el;
}

/** Controls with a label. @param {string} name @param {HTMLElement[]} controls */
export function labelled(name, ...controls) {
  const el = make("label", "lens-field");
  el.append(make("span", "lens-label", name), ...controls);
  return el;
}

/**
 * A segmented control of native radio buttons, which keeps their keyboard handling.
 *
 * @param {string} name
 * @param {string} group unique in the document
 * @param {string[]} values
 * @param {(i: number, event: Event) => void} onChoose
 * @param {(i: number) => string} [hint]
 */
export function segments(name, group, values, onChoose, hint = () => "") {
  const el = make("div", "lens-segments");
  el.setAttribute("role", "radiogroup");
  el.setAttribute("aria-label", name);
  const inputs = values.map((value, i) => {
    const label = make("label");
    const input = make("input");
    input.type = "radio";
    input.name = group;
    input.value = value;
    input.addEventListener("change", (event) => onChoose(i, event));
    label.title = hint(i);
    label.append(input, make("span", "", value));
    el.append(label);
    return input;
  });
  return { el, inputs };
}

/** @param {number} x @param {number} low @param {number} high */
export const clamp = (x, low, high) => Math.max(low, Math.min(high, x));
