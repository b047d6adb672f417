// Maps over the picture: what the server keeps of a run, as numbers, words and pixels. No DOM.
// @ts-check
/** @import { Report, TokenSpan } from "./report.js" */
/** @import { Atlas, Palette, RunMap, Size } from "./types.js" */

import { ramp } from "./colours.js";
import { wordOf } from "./words.js";

const LEVELS = 255;
const FLOOR = 0.25; // of the opacity, where a map is lowest: the same fading as memguard/overlay.py
/** @type {Record<string, string>} */
const TITLES = { bright_ending: "Where it copies", noise_gap: "Noise gap" };
/** @type {Record<string, string>} */
const MEANINGS = {
  bright_ending: "attention to the end of the prompt at the last step; high where the model copies",
  noise_gap: "squared noise gap at the last step; high where the prompt pulls hardest",
};

/** What the button of a map that is no word's says. */
export function titleOf(/** @type {string} */ name) {
  return TITLES[name] ?? name;
}

/** The maps of a report that have a button of their own. */
export function buttonsOf(/** @type {Pick<Report, "maps">} */ report) {
  return Object.keys(TITLES).filter((name) => (report.maps ?? []).includes(name));
}

/** What a map is, in one line. */
export function meaningOf(/** @type {RunMap} */ map, /** @type {TokenSpan[]} */ spans) {
  if (MEANINGS[map.name]) return `${titleOf(map.name)}: ${MEANINGS[map.name]}`;
  return `Where “${word(map, spans)}” acts: its attention over the run`;
}

/** The number of a map at a place. */
export function valueAt(/** @type {RunMap} */ map, /** @type {Size} */ [, width], /** @type {number} */ row, /** @type {number} */ column) {
  return map.low + ((map.high - map.low) * map.values[row * width + column]) / LEVELS;
}

/** The cell of a map at a spot of the picture, both coordinates 0..1. */
export function cellAt(/** @type {Size} */ [height, width], /** @type {number} */ x, /** @type {number} */ y) {
  const cell = (/** @type {number} */ share, /** @type {number} */ count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
  return { row: cell(y, height), column: cell(x, width) };
}

/**
 * The words at a spot, the strongest first: [{word, value}]. Empty where no map of a word is kept.
 * @param {Atlas} atlas
 * @param {TokenSpan[]} spans
 * @param {number} row
 * @param {number} column
 */
export function rankedAt({ size, maps }, spans, row, column) {
  const words = [...maps.values()].filter((map) => map.span !== null);
  const found = words.map((map) => ({ word: word(map, spans), value: valueAt(map, size, row, column) }));
  return found.sort((a, b) => b.value - a.value);
}

/** The pixels of a map, RGBA rows from the top; opacity is what the map has where it is highest. */
export function pixels(/** @type {RunMap} */ map, /** @type {number} */ opacity, /** @type {Palette} */ palette) {
  const found = new Uint8ClampedArray(4 * map.values.length);
  map.values.forEach((value, index) => {
    const share = value / LEVELS;
    found.set([...ramp(share, palette), Math.round(255 * opacity * (FLOOR + (1 - FLOOR) * share))], 4 * index);
  });
  return found;
}

/** A number as the legend writes it. */
export function short(/** @type {number} */ value) {
  return String(Number(value.toPrecision(3)));
}

function word(/** @type {RunMap} */ map, /** @type {TokenSpan[]} */ spans) {
  const span = map.span === null ? undefined : spans[map.span];
  return span ? wordOf(span) : map.name;
}

/** Whether a picture has the proportions of maps of that size, [height, width]. */
export function fits(/** @type {Size} */ [rows, columns], /** @type {number} */ width, /** @type {number} */ height) {
  return Math.abs((width * rows) / (height * columns) - 1) < 0.03;
}
