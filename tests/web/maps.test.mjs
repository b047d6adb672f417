// Maps over the picture: numbers at their places, words at a spot, pixels.

import assert from "node:assert/strict";
import { test } from "node:test";
import { buttonsOf, cellAt, fits, pixels, rankedAt, titleOf, valueAt } from "../../web/js/maps.js";
import { unpack } from "../../web/js/server.js";
import { cases } from "./cases.mjs";

const packed = (name, values, low, high, span = null) => ({ name, span, low, high, data: Buffer.from(values).toString("base64") });
const LEVELS = [0, 51, 102, 153, 204, 255];
const atlas = unpack({
  run: "r",
  size: [2, 3],
  preview: null,
  maps: [
    packed("bright_ending", LEVELS, 1, 2),
    packed("word 0", [0, 0, 0, 0, 0, 255], 0, 0.5, 0),
    packed("word 2", [255, 0, 0, 0, 0, 51], 0, 1, 2),
  ],
});
const ending = atlas.maps.get("bright_ending");

test("a map has its numbers at their places", () => {
  const found = [0, 1].map((row) => [0, 1, 2].map((column) => Number(valueAt(ending, atlas.size, row, column).toFixed(6))));
  assert.deepEqual(found, [[1, 1.2, 1.4], [1.6, 1.8, 2]]);
});

for (const [x, y, row, column] of [[0, 0, 0, 0], [0.999, 0.999, 1, 2], [1, 1, 1, 2], [-1, 2, 1, 0], [0.34, 0.5, 1, 1]]) {
  test(`the spot ${x}, ${y} of the picture is a cell of the map`, () => {
    assert.deepEqual(cellAt([2, 3], x, y), { row, column });
  });
}

test("words at a spot are ranked by their maps", () => {
  const { spans } = cases.words.noted;
  assert.deepEqual(rankedAt(atlas, spans, 0, 0), [{ word: "[padding]", value: 1 }, { word: "Halley", value: 0 }]);
  const last = rankedAt(atlas, spans, 1, 2);
  assert.deepEqual(last.map(({ word, value }) => [word, value]), [["Halley", 0.5], ["[padding]", 0.2]]);
});

test("the pixels fade with the map and have the colours of the chips", () => {
  const found = pixels(ending, 0.8);
  LEVELS.forEach((level, cell) => {
    for (const channel of [0, 1, 2]) assert.ok(Math.abs(found[4 * cell + channel] - cases.ramp[level][channel]) <= 1);
  });
  assert.equal(found[3], 51);
  assert.equal(found[5 * 4 + 3], 204);
});

test("buttons only for maps that are kept", () => {
  assert.deepEqual(buttonsOf({ maps: ["word 0", "noise_gap", "bright_ending"] }).map(titleOf), ["Where it copies", "Noise gap"]);
  assert.deepEqual(buttonsOf({}), []);
});

for (const [size, [width, height], expected] of [
  [[16, 16], [128, 128], true],
  [[16, 16], [128, 152], false],
  [[64, 96], [768, 512], true],
  [[96, 64], [768, 512], false],
]) {
  test(`a drawing with a legend is no picture of the run: ${size} and ${width} × ${height}`, () => {
    assert.equal(fits(size, width, height), expected);
  });
}
