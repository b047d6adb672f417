// What a badge says of a report.

import assert from "node:assert/strict";
import { test } from "node:test";
import { attemptLines, describe } from "../../web/js/verdict.js";
import { cases } from "./cases.mjs";

const { blank, scored, known, partly, percentiles, uncalibrated, unscored, two, alike, mitigated, passes } = cases;

test("a verdict has words, a mark and a percentile", () => {
  const badge = describe(scored);
  assert.deepEqual([badge.tone, badge.text], ["memorized", "Looks memorized"]);
  assert.ok(badge.mark);
  assert.deepEqual(badge.lines, ["Higher than 99.2 % of ordinary prompts", "Score 5.5, mean of 2"]);
});

test("a verdict says its rank, its rate and what limits it", () => {
  assert.deepEqual(describe(known.memorized).lines, [
    "Higher than all 320 ordinary prompts",
    "Score 5.5, mean of 2",
    "Looks memorized by mistake: 0.31 % of ordinary prompts, at most 0.93 % (95 % confidence)",
    "This run's is not known",
  ]);
  const near = describe(known.suspicious).lines;
  assert.equal(near[0], "Higher than 318 of 320 ordinary prompts");
  assert.ok(near[2].startsWith("Flagged by mistake: 0.31 %"));
  const low = describe(known.ordinary).lines;
  assert.equal(low[2], "0.94 % of ordinary prompts are flagged by mistake, at most 0.93 % (95 % confidence)");
});

test("an image without a score is not counted as zero", () => {
  assert.equal(describe(partly).lines[1], "Score 5.5, mean of 2");
});

test("a finding of images without scores is no score", () => assert.equal(describe(blank).text, "No score"));

for (const [percentile, words] of [["99.9999", "at least 99.99 %"], ["99.989", "99.98 %"], ["0.0", "0 %"]]) {
  test(`no percentile is rounded up to certainty: ${percentile}`, () => {
    assert.equal(describe(percentiles[percentile]).lines[0], `Higher than ${words} of ordinary prompts`);
  });
}

test("without a profile it says why there is no verdict", () => {
  const badge = describe(uncalibrated);
  assert.equal(badge.text, "No verdict");
  assert.equal(badge.lines[0], "Uncalibrated: no profile for this model; run calibrate");
});

for (const [name, reason] of [["status", "cfg is 1"], ["error", "nothing was measured"], ["nothing", "nothing was measured"]]) {
  test(`without a score it says why: ${name}`, () => {
    const badge = describe(unscored[name]);
    assert.deepEqual([badge.tone, badge.text, badge.lines], ["none", "No score", [`Reason: ${reason}`]]);
  });
}

test("the gravest finding is shown", () => assert.equal(describe(two).text, "May be memorized"));

test("of two as grave, the one that the sentence is of is shown", () => {
  assert.equal(alike.told, 1);
  assert.ok(alike.message.includes("score 9"));
  assert.equal(describe(alike).lines[1], "Score 9");
  const { told, ...earlier } = alike;
  assert.equal(describe(earlier).lines[1], "Score 5.5, mean of 2");
});

for (const [name, tone, text] of [
  ["helped", "ordinary", "Mitigated"],
  ["failed", "memorized", "Could not be mitigated"],
  ["unscored", "unknown", "Mitigated, not scored again"],
  ["still", "suspicious", "Still may be memorized"],
  ["untried", "memorized", "Looks memorized"],
]) {
  test(`the verdict is that of the picture that was made: ${name}`, () => {
    const badge = describe(mitigated[name]);
    assert.deepEqual([badge.tone, badge.text], [tone, text]);
    const before = name === "untried" ? "Higher" : "Before: higher";
    assert.equal(badge.lines[0], `${before} than 99.2 % of ordinary prompts`);
  });
}

test("attempts are told with what became of them", () => {
  assert.deepEqual(attemptLines(mitigated.helped), [
    { text: "1. Padding: score 2.5, looks memorized; not kept", details: ["Padded with zeros"] },
    { text: "2. Noise: score 0.512, looks ordinary", details: ["Moved"] },
  ]);
});

test("a verdict that was taken over is named", () => {
  assert.equal(describe(passes.carried).lines.at(-1), "The verdict of an earlier pass; this one has none of its own");
});
