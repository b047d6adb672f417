// What the server sends, made by cases.py: from the file in MEMGUARD_CASES, or by asking Python.

import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

const python = process.platform === "win32" ? "python" : "python3";
const cwd = new URL("../../", import.meta.url);
const file = process.env.MEMGUARD_CASES;

export const cases = JSON.parse(file ? readFileSync(file, "utf-8") : execFileSync(python, ["-m", "tests.web.cases"], { cwd, encoding: "utf-8" }));
