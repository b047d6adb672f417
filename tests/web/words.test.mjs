// The words of an attribution: what chips and lines say.

import assert from "node:assert/strict";
import { test } from "node:test";
import { chips, lines, rows } from "../../web/js/words.js";
import { cases } from "./cases.mjs";

const { usual, blank, negative, parts, noted, none } = cases.words;

test("a chip says its word, its weight, its share and its tokens", () => {
  const [first, gone, padding] = chips(usual);
  assert.deepEqual([first.word, first.weight], ["Halley", "3"]);
  assert.equal(first.title, "Halley: 3, 75 % of the sum, token 5 6, emphasis 1.3");
  assert.equal(gone.title, "gone: 0, 0 % of the sum, cut off, the model never sees it");
  assert.equal(padding.weight, "1 (25 %)");
  assert.equal(padding.title, "[padding]: 1, 25 % of the sum, token 9 9 9 9 9 9 9 9 …");
  assert.equal(first.background, `rgb(${cases.ramp.at(-1)})`);
  assert.equal(first.colour, "black");
});

test("a weight that is no number is none, and the others keep theirs", () => {
  assert.deepEqual(chips(blank).map(({ weight }) => weight), ["3", "–", "1 (25 %)"]);
});

test("there are no shares of a sum with negative weights", () => {
  const found = chips(negative);
  assert.equal(found[0].title, "Halley: 1.23, token 5 6, emphasis 1.3");
  assert.equal(found[2].weight, "-0.5");
});

test("each part of a prompt has its row and its own sum", () => {
  const found = rows(parts);
  assert.deepEqual(found.map((row) => row.map(({ word }) => word)), [["cup", "[EOS]"], ["tree"]]);
  assert.equal(found[0][1].weight, "3 (75 %)");
  assert.deepEqual(found.flat().map(({ index }) => index), [0, 1, 2]);
});

test("the lines say the unit and the notes, or the reason", () => {
  assert.deepEqual(lines(noted), ["gradient: slope", "a note"]);
  assert.deepEqual(lines(none), ["No attribution: no cross-attention"]);
});
