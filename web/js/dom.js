// Small pieces of page. textContent only: prompts and file names of others pass through here.
// @ts-check

const SVG = "http://www.w3.org/2000/svg";
const CONFIRMED = 2500; // ms that the button "Copy JSON" says so

/**
 * An element of a class with a text.
 * @template {keyof HTMLElementTagNameMap} Tag
 */
export function part(/** @type {Tag} */ tag, /** @type {string} */ name, text = "") {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
}

/** A button that does something. */
export function button(/** @type {string} */ text, /** @type {() => void} */ act, name = "memguard-button") {
  const element = part("button", name, text);
  element.type = "button";
  element.addEventListener("click", act);
  return element;
}

/** An element of a drawing. */
export function shape(/** @type {string} */ tag, /** @type {Record<string, string | number>} */ attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
  element.textContent = text;
  return element;
}

/** "Copy JSON", also where the page is not served over https: copies what `text` returns, and says whether it did. */
export function copyButton(/** @type {() => string} */ text) {
  const element = button("Copy JSON", async () => {
    element.textContent = (await copy(text())) ? "✓ Copied" : "Not copied: the browser refused";
    setTimeout(() => (element.textContent = "Copy JSON"), CONFIRMED);
  });
  element.setAttribute("aria-live", "polite");
  return element;
}

async function copy(/** @type {string} */ text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelected(text); // no clipboard on plain http, or not allowed
  }
}

function copySelected(/** @type {string} */ text) {
  const focused = /** @type {HTMLElement | null} */ (document.activeElement);
  const area = document.createElement("textarea");
  area.value = text;
  area.style.position = "fixed";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}
