// Small pieces of page. textContent only: prompts and file names of others pass through here.

const SVG = "http://www.w3.org/2000/svg";

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
