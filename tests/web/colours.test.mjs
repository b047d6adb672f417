// Colours: the page's are the pictures', and letters on them can be read.

import assert from "node:assert/strict";
import { test } from "node:test";
import { PALETTES, ink, ramp } from "../../web/js/colours.js";
import { chips } from "../../web/js/words.js";
import { cases } from "./cases.mjs";

const LETTERS = { black: [0, 0, 0], white: [255, 255, 255] };
const all = (palette) => [...Array(256).keys()].map((i) => ramp(i / 255, palette));

/** The contrast of letters on a background as WCAG 2 defines it. */
function contrast(background, letters) {
  const linear = (share) => (share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4);
  const [low, high] = [background, letters]
    .map((colour) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => sum + weight * linear(colour[i] / 255), 0))
    .sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

test("the colours are those of the pictures", () => {
  const worst = all().map((colour, i) => Math.max(...colour.map((value, channel) => Math.abs(value - cases.ramp[i][channel]))));
  assert.ok(Math.max(...worst) <= 1);
  assert.deepEqual(all().map(ink), cases.inks);
});

test("every palette gets lighter with the number, and grey has no hue", () => {
  assert.deepEqual(PALETTES, ["colour", "grey"]);
  for (const name of PALETTES) {
    const found = [...Array(9).keys()].map((i) => ramp(i / 8, name));
    const light = found.map(([r, g, b]) => 0.299 * r + 0.587 * g + 0.114 * b);
    assert.ok(light.every((value, i) => i === 0 || value > light[i - 1]));
    assert.ok(name !== "grey" || found.every((colour) => new Set(colour).size === 1));
  }
});

for (const palette of ["colour", "grey"]) {
  test(`every chip can be read in ${palette}`, () => {
    assert.ok(Math.min(...all(palette).map((colour) => contrast(colour, LETTERS[ink(colour)]))) >= 4.5);
  });

  for (const light of [true, false]) {
    test(`the heaviest word stands out most in ${palette} on a ${light ? "light" : "dark"} ground`, () => {
      const grounds = chips(cases.words.four, palette, light).map((chip) => chip.background.slice(4, -1).split(",").map(Number));
      const found = grounds.map((ground) => contrast(ground, light ? [255, 255, 255] : [34, 34, 34]));
      assert.deepEqual(found, [...found].sort((a, b) => a - b));
      assert.ok(found.at(-1) > 9);
    });
  }
}
