// Warnings as toasts: whom they warn, and one for all runs of a workflow.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Toasts, toast, warns } from "../../web/js/toasts.js";
import { cases } from "./cases.mjs";

for (const report of cases.asked) {
  test(`it warns exactly when asked and flagged: ${report.policy}, ${report.verdict}`, () => {
    assert.equal(warns(report), report.policy !== "observe" && report.flagged);
  });
}

test("the toast says the sentence of the report", () => {
  const { severity, detail } = toast([cases.scored]);
  assert.equal(severity, "warn");
  assert.equal(detail, cases.scored.message);
});

const said = [...Array(6).keys()].map((i) => ({ policy: "warn", message: `message ${i}` }));

/** What stands after reports were told at their times, [workflow, report, milliseconds], and how many toasts were put up. */
function told(...rows) {
  const clock = { now: 0 };
  const shelf = {
    standing: [],
    added: 0,
    add(one) {
      this.standing.push(one);
      this.added += 1;
    },
    remove(one) {
      this.standing = this.standing.filter((other) => other !== one);
    },
  };
  const all = new Toasts(shelf, () => clock.now);
  for (const [workflow, report, at] of rows) {
    clock.now = at;
    all.tell(workflow, report);
  }
  return [shelf.standing.map(({ summary, detail }) => [summary, detail]), shelf.added];
}

test("one toast per workflow tells of all its runs", () => {
  const [found] = told(["w", said[0], 0], ["w", said[1], 5], ["v", said[0], 6]);
  assert.deepEqual(found, [["MemGuard warning: 2 runs", "message 0\nmessage 1"], ["MemGuard warning", "message 0"]]);
  const [many] = told(...[...said, said[5]].map((one, i) => ["w", one, i]));
  assert.deepEqual(many, [["MemGuard warning: 7 runs", "message 3\nmessage 4\nmessage 5\nand 3 more"]]);
  const [later, added] = told(["w", said[0], 0], ["w", said[1], 70000]);
  assert.deepEqual(later.at(-1), ["MemGuard warning", "message 1"]);
  assert.equal(added, 2);
});

test("a frontend whose toasts have ids gets one id per workflow", () => {
  const rows = [];
  const all = new Toasts({ warning: (...row) => rows.push(row), add: () => rows.push("twice") }, () => 0);
  for (const report of said.slice(0, 2)) all.tell("w", report);
  const [first, second, ...more] = rows;
  assert.deepEqual(more, []);
  assert.equal(first[1].id, "memguard/w");
  assert.equal(second[1].id, "memguard/w");
  assert.equal(second[0], "MemGuard warning: 2 runs");
  assert.equal(second[1].description, "message 0\nmessage 1");
  assert.equal(second[1].duration, 60000);
});
