// Maps over the picture: what the server keeps of a run, as numbers, words and pixels. No DOM.

import { ramp } from "./colours.js";
import { wordOf } from "./words.js";

const LEVELS = 255;
const FLOOR = 0.25; // of the opacity, where a map is lowest: the same fading as memguard/overlay.py
const TITLES = { bright_ending: "Where it copies", noise_gap: "Noise gap" };
const MEANINGS = {
  bright_ending: "attention to the end of the prompt at the last step; high where the model copies",
  noise_gap: "squared noise gap at the last step; high where the prompt pulls hardest",
};

/** What the button of a map that is no word's says. */
export function titleOf(name) {
  return TITLES[name] ?? name;
}

/** The maps of a report that have a button of their own. */
export function buttonsOf(report) {
  return Object.keys(TITLES).filter((name) => (report.maps ?? []).includes(name));
}

/** What a map is, in one line. */
export function meaningOf(map, spans) {
  if (MEANINGS[map.name]) return `${titleOf(map.name)}: ${MEANINGS[map.name]}`;
  return `Where “${word(map, spans)}” acts: its attention over the run`;
}

/** The number of a map at a place. */
export function valueAt(map, [, width], row, column) {
  return map.low + ((map.high - map.low) * map.values[row * width + column]) / LEVELS;
}

/** The cell of a map at a spot of the picture, both coordinates 0..1. */
export function cellAt([height, width], x, y) {
  const cell = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
  return { row: cell(y, height), column: cell(x, width) };
}

/** The words at a spot, the strongest first: [{word, value}]. Empty where no map of a word is kept. */
export function rankedAt({ size, maps }, spans, row, column) {
  const words = [...maps.values()].filter((map) => map.span !== null);
  const found = words.map((map) => ({ word: word(map, spans), value: valueAt(map, size, row, column) }));
  return found.sort((a, b) => b.value - a.value);
}

/** The pixels of a map, RGBA rows from the top; opacity is what the map has where it is highest. */
export function pixels(map, opacity, palette) {
  const found = new Uint8ClampedArray(4 * map.values.length);
  map.values.forEach((value, index) => {
    const share = value / LEVELS;
    found.set([...ramp(share, palette), Math.round(255 * opacity * (FLOOR + (1 - FLOOR) * share))], 4 * index);
  });
  return found;
}

/** A number as the legend writes it. */
export function short(value) {
  return String(Number(value.toPrecision(3)));
}

function word(map, spans) {
  const span = spans[map.span];
  return span ? wordOf(span) : map.name;
}

/** Whether a picture has the proportions of maps of that size, [height, width]. */
export function fits([rows, columns], width, height) {
  return Math.abs((width * rows) / (height * columns) - 1) < 0.03;
}
