// The words of an attribution in the page: a chip each, on its colour, with its weight; both are text.
// @ts-check
/** @import { Attribution, Group, TokenSpan } from "./report.js" */
/** @import { Palette } from "./types.js" */

import { ink, isLight, ramp } from "./colours.js";
import { part } from "./dom.js";
import { addPanel } from "./panel.js";
import { setting } from "./settings.js";

/** @type {Partial<Record<Group, string>>} */
const NAMES = { bos: "[BOS]", eos: "[EOS]", padding: "[padding]", pooled: "[pooled]" };
/** @typedef {{ maps?: string[], selected?: string | null, open?: (name: string) => void }} Opening */

const IDS = 8; // token ids that a title names; padding has dozens

/** The word of a span as the page writes it. */
export function wordOf(/** @type {TokenSpan} */ span) {
  return span.text || (NAMES[span.group] ?? "");
}

/**
 * One chip per span: its word, its weight as text, its colours, and a title that says everything. The heaviest word
 * stands out most: on a `light` ground it is the darkest, on a dark one the brightest.
 */
export function chips(/** @type {Attribution} */ attribution, /** @type {Palette} */ palette = "colour", light = false) {
  const { spans } = attribution;
  const weights = attribution.weights.map((weight) => weight ?? 0);
  const low = Math.min(0, ...weights);
  const range = Math.max(...weights) - low || 1;
  return spans.map((span, index) => {
    const height = (weights[index] - low) / range;
    const background = ramp(light ? 1 - height : height, palette);
    const weight = attribution.weights[index] === null ? "–" : String(Number(weights[index].toPrecision(3)));
    const share = shareOf(spans, weights, index);
    return {
      index,
      part: span.part ?? 0,
      word: wordOf(span),
      // what is no word shows its share too: a heavy [EOS] says that the words do not explain the score
      weight: span.group === "word" || share === null ? weight : `${weight} (${share} %)`,
      background: `rgb(${background})`,
      colour: ink(background),
      title: title(span, weight, share),
    };
  });
}

/** The chips in rows, one per part of a combined prompt. */
export function rows(/** @type {Attribution} */ attribution, /** @type {Palette} */ palette = "colour", light = false) {
  const all = chips(attribution, palette, light);
  return [...new Set(all.map(({ part }) => part))].map((part) => all.filter((chip) => chip.part === part));
}

/** What stands below the chips: what the weights are, or why there are none, and the notes. */
export function lines(/** @type {Attribution} */ attribution) {
  if (attribution.status !== "ok") return [`No attribution: ${attribution.status}`];
  return [`${attribution.method}: ${attribution.unit}`, ...attribution.notes];
}

// in percent of the sum of the part's weights; null where a negative weight leaves no whole to have a share of
function shareOf(/** @type {TokenSpan[]} */ spans, /** @type {number[]} */ weights, /** @type {number} */ index) {
  const part = spans[index].part ?? 0;
  const own = weights.filter((_, other) => (spans[other].part ?? 0) === part);
  const sum = own.reduce((total, weight) => total + weight, 0);
  return own.some((weight) => weight < 0) || sum <= 0 ? null : Math.round((100 * weights[index]) / sum);
}

function title(/** @type {TokenSpan} */ span, /** @type {string} */ weight, /** @type {number | null} */ share) {
  const parts = [`${wordOf(span)}: ${weight}`];
  if (share !== null) parts.push(`${share} % of the sum`);
  const more = span.ids.length > IDS ? " …" : "";
  if (span.ids.length > 0) parts.push(`token ${span.ids.slice(0, IDS).join(" ")}${more}`);
  if (span.emphasis !== 1) parts.push(`emphasis ${span.emphasis}`);
  if (span.group === "word" && span.columns.length === 0) parts.push("cut off, the model never sees it");
  return parts.join(", ");
}

/** The name of a word's map. */
export function wordMap(/** @type {number} */ index) {
  return `word ${index}`;
}

/**
 * The elements that show an attribution. Words that have a map are buttons: `open` gets the map's name.
 * `selected` is the name of the map that is open, `maps` the names that can be opened.
 * @param {Attribution} attribution
 * @param {Palette} palette
 * @param {Opening} [opening]
 */
export function wordRows(attribution, palette, opening = {}) {
  const found = attribution.status === "ok" ? rows(attribution, palette, isLight()) : [];
  const shown = found.map((row, index) => {
    const element = part("div", "memguard-chips");
    if (found.length > 1) element.append(part("span", "memguard-part", `Part ${index + 1}`));
    for (const chip of row) element.append(chipOf(chip, opening));
    return element;
  });
  return [...shown, ...lines(attribution).map((line) => part("div", "memguard-line", line))];
}

/**
 * @param {ReturnType<typeof chips>[number]} chip
 * @param {Opening} opening
 */
function chipOf(chip, { maps = [], selected, open }) {
  const name = wordMap(chip.index);
  const opens = open && maps.includes(name);
  const element = part(opens ? "button" : "span", "memguard-chip", chip.word);
  element.append(part("small", "memguard-weight", chip.weight));
  Object.assign(element.style, { background: chip.background, color: chip.colour });
  element.title = chip.title;
  element.setAttribute("aria-label", opens ? `${chip.title}; show its map` : chip.title);
  if (element instanceof HTMLButtonElement) {
    element.type = "button";
    element.dataset.map = name;
    element.setAttribute("aria-pressed", String(name === selected));
    element.addEventListener("click", () => open?.(name));
  } else {
    element.tabIndex = 0;
  }
  return element;
}

/** The panel of Token Attribution: the words alone. */
export class Words {
  #panel;
  /** @type {Attribution | null} */
  #attribution = null;

  constructor(/** @type {ComfyUI.Node} */ node) {
    this.#panel = addPanel(node, "memguard_words", "MemGuard: words");
    this.#panel.element.setAttribute("role", "status");
    this.#panel.content.append(part("div", "memguard-line", "No run yet"));
  }

  show(/** @type {Attribution} */ attribution) {
    this.#attribution = attribution;
    this.repaint();
  }

  repaint() {
    if (!this.#attribution) return;
    this.#panel.content.replaceChildren(...wordRows(this.#attribution, setting("Colours")));
  }
}
