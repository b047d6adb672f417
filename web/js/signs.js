// Made by tools/report_format.py from memguard/wording.py: run that, do not edit this.
// @ts-check
/** @import { Verdict } from "./report.js" */

/** Of a verdict: one character, and what is said of a run. */
export const SIGNS = /** @type {Record<Verdict, {mark: string, words: string}>} */ ({
  ordinary: { mark: "✓", words: "looks ordinary" },
  suspicious: { mark: "▲", words: "may be memorized" },
  memorized: { mark: "■", words: "looks memorized" },
  unknown: { mark: "?", words: "no verdict" },
});
