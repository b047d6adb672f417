// What the settings say of the memory of finished runs.

import assert from "node:assert/strict";
import { test } from "node:test";
import { memoryLine } from "../../web/js/settings.js";

for (const [state, line] of [
  [{ enabled: true, status: "ok", runs: 1, bytes: 500 }, "1 run remembered, 500 B"],
  [{ enabled: false, status: "ok", runs: 12, bytes: 40960 }, "12 runs remembered, 40 KiB; new runs are not"],
  [{ status: "the file is damaged" }, "The memory is off: the file is damaged"],
]) {
  test(`the settings say what is remembered: ${line}`, () => assert.equal(memoryLine(state), line));
}
