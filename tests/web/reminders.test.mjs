// What is said of a prompt that looked memorized before.

import assert from "node:assert/strict";
import { test } from "node:test";
import { remindsOf, sentence } from "../../web/js/reminders.js";

const WARNING = {
  kind: "prompt",
  words: [],
  verdict: "memorized",
  score: 2.5891,
  percentile: 99.876,
  checkpoint: "a.safetensors",
  seed: 0,
  created: "2026-01-02T03:04:05+00:00",
};

test("a known prompt is said with its evidence", () => {
  assert.equal(
    sentence(WARNING),
    "This prompt looked memorized before (score 2.59, higher than 99.87 % of ordinary prompts, a.safetensors, " +
      "seed 0, 2026-01-02). Nothing was computed now.",
  );
});

test("known words are named", () => {
  const words = ["a", "b", "c", "d", "e", "f"];
  assert.equal(
    sentence({ ...WARNING, kind: "words", words, percentile: null, checkpoint: null, seed: null }),
    "These words drove a memorized run before: a, b, c, d, e, … (score 2.59, 2026-01-02). Nothing was computed now.",
  );
});

test("no percentile is rounded up to certainty", () => {
  for (const percentile of [100, 99.995]) {
    assert.ok(sentence({ ...WARNING, percentile }).includes("higher than at least 99.99 % of ordinary prompts"));
  }
});

test("a warning of the shown run itself is none", () => {
  const runs = ["2026-01-02T00:00:09", "2026-01-02T00:00:00"].map((created) => ({ run: created, created }));
  const entry = { report: runs[0], runs };
  const warning = { kind: "prompt", created: "2026-01-02T00:00:00" };
  assert.equal(remindsOf(warning, entry), true);
  assert.equal(remindsOf({ ...warning, created: "2026-01-01T00:00:00" }, entry), false);
  assert.equal(remindsOf({ ...warning, kind: "words" }, entry), false);
  assert.equal(remindsOf(warning, null), false);
});
