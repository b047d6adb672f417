// Small pieces of page. textContent only: prompts and file names of others pass through here.

const SVG = "http://www.w3.org/2000/svg";
const CONFIRMED = 2500; // ms that the button "Copy JSON" says so

/** An element of a class with a text. */
export function part(tag, name, text = "") {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
}

/** A button that does something. */
export function button(text, act, name = "memguard-button") {
  const element = part("button", name, text);
  element.type = "button";
  element.addEventListener("click", act);
  return element;
}

/** An element of a drawing. */
export function shape(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

/** "Copy JSON", also where the page is not served over https: copies what `text` returns, and says whether it did. */
export function copyButton(text) {
  const element = button("Copy JSON", async () => {
    element.textContent = (await copy(text())) ? "✓ Copied" : "Not copied: the browser refused";
    setTimeout(() => (element.textContent = "Copy JSON"), CONFIRMED);
  });
  element.setAttribute("aria-live", "polite");
  return element;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelected(text); // no clipboard on plain http, or not allowed
  }
}

function copySelected(text) {
  const focused = document.activeElement;
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
