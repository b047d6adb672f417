// ComfyUI imports every script of web/ as an extension: each must load, and one of them registers, once.

import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { test } from "node:test";
import { app } from "./comfyui.mjs";

const FOLDER = new URL("../../web/js/", import.meta.url);
const MAIN = "memguard.js";
const scripts = readdirSync(FOLDER).filter((name) => name.endsWith(".js"));
const others = scripts.filter((name) => name !== MAIN);

for (const script of [...others, MAIN]) {
  test(`it loads: ${script}`, async () => {
    await import(new URL(script, FOLDER));
    assert.deepEqual(app.extensions.map(({ name }) => name), script === MAIN ? ["MemGuard"] : []);
  });
}
