// What the page says of a report, before and after mitigation. Words only, no DOM.
// The sentence itself (report.message) is written by memguard/wording.py and shown as it comes.
// @ts-check
/** @import { Finding, Report, Verdict } from "./report.js" */
/** @import { Described, Said } from "./types.js" */

import { SIGNS } from "./signs.js";

/** @type {Said} */
const NO_SCORE = { tone: "none", mark: "–", text: "No score" };
const AFTER = {
  memorized: signed("memorized", `Still ${SIGNS.memorized.words}`),
  suspicious: signed("suspicious", `Still ${SIGNS.suspicious.words}`),
  ordinary: signed("ordinary", "Mitigated"),
  unknown: signed("unknown", "Mitigated, not scored again"),
};
const FAILED = signed("memorized", "Could not be mitigated");

/**
 * What a badge shows: tone (for the colour), mark, text, lines of explanation, and the sentence for screen readers.
 * @returns {Described}
 */
export function describe(/** @type {Report} */ report) {
  const scored = (report.findings ?? []).filter(({ scores }) => known(scores).length > 0);
  // reports of earlier versions do not say which finding their sentence is of
  const said = scored.find((finding) => finding === report.findings[report.told ?? -1]);
  const finding = said ?? scored.find(({ verdict }) => verdict === report.verdict) ?? scored[0];
  const after = outcome(report);
  const badge = after ?? (finding ? signed(finding.verdict, capital(signOf(finding.verdict).words)) : NO_SCORE);
  const lines = finding ? scoreLines(finding) : [`Reason: ${report.findings?.[0]?.status ?? "nothing was measured"}`];
  const shown = after ? lines.map((line) => `Before: ${line.charAt(0).toLowerCase()}${line.slice(1)}`) : lines;
  return { ...badge, lines: [...shown, ...(report.notes ?? [])], sentence: report.message };
}

// a saved workflow may have been edited by hand
function signOf(/** @type {Verdict} */ verdict) {
  return SIGNS[verdict] ?? SIGNS.unknown;
}

/** @returns {Said} */
function signed(/** @type {Verdict} */ tone, /** @type {string} */ text) {
  return { tone, mark: signOf(tone).mark, text };
}

// the verdict of a run after mitigation; null where nothing was tried
function outcome(/** @type {Report} */ report) {
  if (!report.attempts?.length) return null;
  return report.attempts.some(({ kept }) => kept) ? AFTER[report.verdict_after] : FAILED;
}

/** One line per attempt: what it was, the score after it, and whether the run went on with it; then what it changed. */
export function attemptLines(/** @type {Report} */ report) {
  return (report.attempts ?? []).map(({ mitigation, scores, verdict, kept, changes }, index) => ({
    text: `${index + 1}. ${mitigation}${known(scores).length > 0 ? `: score ${mean(scores)}, ${signOf(verdict).words}` : ""}${kept ? "" : "; not kept"}`,
    details: changes.map(capital),
  }));
}

function scoreLines(/** @type {Finding} */ finding) {
  const scores = known(finding.scores);
  const count = finding.scores.length > 1 ? `, mean of ${scores.length}` : "";
  const whose = finding.carried ? "the verdict of an earlier pass; this one has none of its own" : "";
  const more = [finding.odds, finding.caveat, whose].filter((text) => text).map(capital);
  return [capital(place(finding)), `Score ${mean(scores)}${count}`, ...more];
}

// where a score stands among ordinary prompts: memguard/wording.py says it; reports of earlier versions do not
function place(/** @type {Finding} */ finding) {
  if (finding.place) return finding.place;
  return finding.percentile === null ? finding.threshold_source : `higher than ${share(finding.percentile)} of ordinary prompts`;
}

// an image without a score has none
function known(/** @type {(number | null)[]} */ scores) {
  return scores.filter((score) => score !== null);
}

function mean(/** @type {(number | null)[]} */ scores) {
  const found = known(scores);
  return Number((found.reduce((sum, score) => sum + score, 0) / found.length).toPrecision(3));
}

/** A percentile in words. Never rounds up to 100 %: no finite sample shows that. */
export function share(/** @type {number} */ percentile) {
  if (percentile > 99.99) return "at least 99.99 %";
  return `${Math.floor(percentile * 100) / 100} %`;
}

function capital(/** @type {string} */ text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
