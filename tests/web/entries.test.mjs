// Several runs of one prompt on one node, a copied node, and what a workflow keeps.

import assert from "node:assert/strict";
import { test } from "node:test";
import { compact, gathered, otherLines, replaces, restored } from "../../web/js/entries.js";
import { describe } from "../../web/js/verdict.js";
import { cases } from "./cases.mjs";

const { explained, passes } = cases;
const report = (run, name = "memorized", facts = {}) => ({ ...passes[name], run, ...facts });
const entry = (report, prompt = "p") => ({ report, prompt, check: false });
/** What a node shows that got these reports one after the other. */
const shown = (...reports) => reports.reduce((before, one) => gathered(before, { report: one, prompt: "p" }), null);
const saved = (...values) => JSON.parse(JSON.stringify(compact(...values))); // a workflow is a JSON file
const runsOf = (entry) => entry.runs.map(({ run }) => run);

const FIRST = report("1");
const GREY = report("2", "unknown");
const ORDINARY = report("3", "ordinary");
const MITIGATED = report("4", "mitigated");
const AGAIN = report("5", "again");
const UNTREATED = report("6", "untreated");

for (const [runs, top] of [
  [[FIRST, GREY], "1"], // hires ends without a verdict
  [[GREY, FIRST], "1"],
  [[ORDINARY, GREY], "3"],
  [[ORDINARY, FIRST, GREY], "1"],
  [[MITIGATED, UNTREATED], "6"], // painted again
  [[MITIGATED, AGAIN], "4"],
  [[MITIGATED, ORDINARY], "4"],
  [[ORDINARY, MITIGATED], "4"],
  [[FIRST, report("7")], "1"],
  [[report("8", "carried"), FIRST], "1"],
  [[GREY, report("9", "suspicious"), ORDINARY], "9"],
]) {
  test(`the gravest run stays on top and the others are listed: ${runs.map(({ run }) => run)}`, () => {
    const found = shown(...runs);
    assert.equal(found.report.run, top);
    assert.deepEqual(runsOf(found), runs.map(({ run }) => run));
    const lines = otherLines(found);
    assert.equal(lines.length, runs.length - 1);
    assert.ok(lines.every(({ sentence }) => sentence.startsWith("MemGuard: ")));
  });
}

test("a run that is told again is one run and may rise or fall", () => {
  const found = shown(report("1", "ordinary"), report("2"), report("2", "mitigated"));
  assert.equal(found.report.run, "2");
  assert.equal(found.runs.length, 2);
  assert.equal(shown(report("1", "unknown"), report("2", "ordinary"), report("1")).report.run, "1");
  assert.equal(shown(report("1"), report("2", "suspicious"), report("1", "ordinary")).report.run, "2");
});

test("the gravest stays however many runs come after it", () => {
  const found = shown(FIRST, ...[...Array(70).keys()].map((i) => report(`n${i}`, "ordinary")));
  assert.equal(found.report.run, "1");
  assert.equal(found.runs.length, 64);
  assert.deepEqual([0, 1, 63].map((i) => found.runs[i].run), ["1", "n7", "n69"]);
});

test("another prompt begins anew", () => {
  const two = (first, second) => runsOf(gathered(gathered(null, first), second));
  assert.deepEqual(two(entry(FIRST), entry(GREY, "q")), ["2"]);
  assert.deepEqual(two(entry(FIRST, null), entry(GREY, null)), ["2"]);
});

test("lines name verdict and size and end in a count", () => {
  const more = [...Array(15).keys()].map((i) => report(`n${i}`, "ordinary", { width: 768, height: 512 }));
  const lines = otherLines(shown(FIRST, ...more));
  assert.equal(lines[0].text, "✓ Looks ordinary, 768 × 512");
  assert.equal(lines.at(-1).text, "and 3 more");
  assert.equal(lines.length, 13);
});

test("a saved workflow keeps lines of the others", () => {
  const memguard = saved(shown(FIRST, GREY), 5);
  assert.deepEqual(memguard.others.map(({ text }) => text), ["No verdict"]);
  assert.ok(!("findings" in memguard.others[0]));
  const back = restored({ memguard }, 5);
  assert.equal(otherLines(back)[0].text, "? No verdict");
  const again = gathered(back, entry(ORDINARY));
  assert.equal(again.report.run, "1");
  assert.deepEqual(runsOf(again), ["1", "2", "3"]);
});

test("a copied node does not show the original's verdict", () => {
  const memguard = saved(shown(FIRST), 5);
  const found = [5, "5", 6, -1].map((id) => restored({ memguard }, id)?.report.run ?? null);
  assert.deepEqual(found, ["1", "1", null, null]);
  delete memguard.node; // of a version that did not write it
  assert.equal(restored({ memguard }, 6).report.run, "1");
});

test("what is saved shows the same badge and holds no more than is shown", () => {
  const memguard = saved({ report: explained, prompt: "p", check: true, saved: true });
  const kept = restored({ memguard });
  assert.deepEqual([kept.prompt, kept.check, kept.saved], ["p", true, true]);
  assert.ok(!("per_step" in kept.report.findings[0]));
  assert.ok(!("layers" in kept.report.attribution) && !("token_scores" in kept.report.attribution));
  assert.deepEqual(describe(kept.report), describe(explained));
});

for (const properties of [null, {}, { memguard: 3 }, { memguard: { report: { run: "r" } } }]) {
  test(`properties of another making are left alone: ${JSON.stringify(properties)}`, () => {
    assert.equal(restored(properties), null);
  });
}

for (const [run, created, replaced] of [
  ["r", "2026-01-01", true],
  ["s", "2026-01-01", false],
  ["s", "2026-01-03", true],
]) {
  test(`a fetched report replaces the same run and older ones: ${run}, ${created}`, () => {
    const next = { report: { ...explained, run, created } };
    assert.equal(replaces(next, { report: explained }), replaced);
    assert.equal(replaces(next, null), true);
  });
}
