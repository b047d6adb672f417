// The score curve in numbers and words.

import assert from "node:assert/strict";
import { test } from "node:test";
import { describeCurve } from "../../web/js/chart.js";

test("a curve has points, numbers and a sentence", () => {
  const found = describeCurve([[14.6, 0.02], [7.0, 0.08], [0.0, 0.04]]);
  assert.deepEqual(found.points.map(({ x, y }) => [x, Number(y.toFixed(6))]), [[0, 0.25], [0.5, 1], [1, 0.5]]);
  assert.deepEqual([found.calls, found.values], [[1, 3], ["0", "0.08"]]);
  assert.equal(
    found.sentence,
    "Noise gap over 3 model calls, RMS: starts at 0.02, highest 0.08 at call 2, lowest 0.02 at call 1, ends at 0.04.",
  );
});

for (const curve of [[], null, [[14.6, 0.1]], [[14.6, 0.1], [1.0, null]]]) {
  test(`fewer than two points are no curve: ${JSON.stringify(curve)}`, () => assert.equal(describeCurve(curve), null));
}

test("a curve of zeros lies at the bottom", () => {
  assert.deepEqual(describeCurve([[1.0, 0.0], [0.5, 0.0]]).points.map(({ y }) => y), [0, 0]);
});
