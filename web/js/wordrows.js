// The words of an attribution in the page: each on its colour, with its weight; both are text.

import { lines, rows } from "./chips.js";
import { part } from "./dom.js";
import { wordMap } from "./maps.js";
import { isLight } from "./theme.js";

/**
 * The elements that show an attribution. Words that have a map are buttons: `open` gets the map's name.
 * `selected` is the name of the map that is open, `maps` the names that can be opened.
 */
export function wordRows(attribution, palette, { maps = [], selected = null, open = null } = {}) {
  const found = attribution.status === "ok" ? rows(attribution, palette, isLight()) : [];
  const shown = found.map((row, index) => {
    const element = part("div", "memguard-chips");
    if (found.length > 1) element.append(part("span", "memguard-part", `Part ${index + 1}`));
    for (const chip of row) element.append(chipOf(chip, maps, selected, open));
    return element;
  });
  return [...shown, ...lines(attribution).map((line) => part("div", "memguard-line", line))];
}

function chipOf(chip, maps, selected, open) {
  const name = wordMap(chip.index);
  const opens = open !== null && maps.includes(name);
  const element = part(opens ? "button" : "span", "memguard-chip", chip.word);
  element.append(part("small", "memguard-weight", chip.weight));
  Object.assign(element.style, { background: chip.background, color: chip.colour });
  element.title = chip.title;
  element.setAttribute("aria-label", opens ? `${chip.title}; show its map` : chip.title);
  if (opens) {
    element.type = "button";
    element.dataset.map = name;
    element.setAttribute("aria-pressed", String(name === selected));
    element.addEventListener("click", () => open(name));
  } else {
    element.tabIndex = 0;
  }
  return element;
}
