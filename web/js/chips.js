// The words of an attribution as the page shows them: one chip each. No DOM, no ComfyUI, so that node can test it.

import { ink, ramp } from "./colours.js";

const NAMES = { bos: "[BOS]", eos: "[EOS]", padding: "[padding]", pooled: "[pooled]" };
const IDS = 8; // token ids that a title names; padding has dozens

/** The word of a span as the page writes it. */
export function wordOf(span) {
  return span.text || NAMES[span.group];
}

/**
 * One chip per span: its word, its weight as text, its colours, and a title that says everything. The heaviest word
 * stands out most: on a `light` ground it is the darkest, on a dark one the brightest.
 */
export function chips(attribution, palette, light = false) {
  const { spans, weights } = attribution;
  const low = Math.min(0, ...weights);
  const range = Math.max(...weights) - low || 1;
  return spans.map((span, index) => {
    const height = (weights[index] - low) / range;
    const background = ramp(light ? 1 - height : height, palette);
    const weight = String(Number(weights[index].toPrecision(3)));
    const share = shareOf(attribution, index);
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
export function rows(attribution, palette, light = false) {
  const found = new Map();
  for (const chip of chips(attribution, palette, light)) {
    if (!found.has(chip.part)) found.set(chip.part, []);
    found.get(chip.part).push(chip);
  }
  return [...found.values()];
}

/** What stands below the chips: what the weights are, or why there are none, and the notes. */
export function lines(attribution) {
  if (attribution.status !== "ok") return [`No attribution: ${attribution.status}`];
  return [`${attribution.method}: ${attribution.unit}`, ...attribution.notes];
}

// in percent of the sum of the part's weights; null where a negative weight leaves no whole to have a share of
function shareOf({ spans, weights }, index) {
  const part = spans[index].part ?? 0;
  const own = weights.filter((_, other) => (spans[other].part ?? 0) === part);
  const sum = own.reduce((total, weight) => total + weight, 0);
  return own.some((weight) => weight < 0) || sum <= 0 ? null : Math.round((100 * weights[index]) / sum);
}

function title(span, weight, share) {
  const parts = [`${wordOf(span)}: ${weight}`];
  if (share !== null) parts.push(`${share} % of the sum`);
  const more = span.ids.length > IDS ? " …" : "";
  if (span.ids.length > 0) parts.push(`token ${span.ids.slice(0, IDS).join(" ")}${more}`);
  if (span.emphasis !== 1) parts.push(`emphasis ${span.emphasis}`);
  if (span.group === "word" && span.columns.length === 0) parts.push("cut off, the model never sees it");
  return parts.join(", ");
}
