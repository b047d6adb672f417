// What the page says of a report, before and after mitigation. Words only, no DOM.
// The sentence itself (report.message) is written by memguard/wording.py and shown as it comes.

import { SIGNS } from "./signs.js";

const NO_SCORE = { tone: "none", mark: "–", text: "No score" };
const GRAVITY = ["ordinary", "suspicious", "memorized"];
const AFTER = {
  memorized: signed("memorized", `Still ${SIGNS.memorized.words}`),
  suspicious: signed("suspicious", `Still ${SIGNS.suspicious.words}`),
  ordinary: signed("ordinary", "Mitigated"),
  unknown: signed("unknown", "Mitigated, not scored again"),
};
const FAILED = signed("memorized", "Could not be mitigated");

/** What a badge shows: tone (for the colour), mark, text, lines of explanation, and the sentence for screen readers. */
export function describe(report) {
  const finding = gravest(report.findings ?? []);
  const scored = finding !== undefined && finding.scores.length > 0;
  const after = outcome(report);
  const badge = after ?? (scored ? signed(finding.verdict, capital(signOf(finding.verdict).words)) : NO_SCORE);
  const lines = scored ? scoreLines(finding) : [reason(report, finding)];
  const shown = after ? lines.map((line) => `Before: ${line.charAt(0).toLowerCase()}${line.slice(1)}`) : lines;
  return { ...badge, lines: [...shown, ...(report.notes ?? [])], sentence: report.message };
}

// a saved workflow may have been edited by hand
function signOf(verdict) {
  return SIGNS[verdict] ?? SIGNS.unknown;
}

function signed(tone, text) {
  return { tone, mark: signOf(tone).mark, text };
}

/** The verdict of a run after mitigation: tone, mark and text; null where nothing was tried. */
export function outcome(report) {
  if (!report.attempts?.length) return null;
  return report.attempts.some(({ kept }) => kept) ? AFTER[report.verdict_after] : FAILED;
}

/** One line per attempt: what it was, the score after it, and whether the run went on with it; then what it changed. */
export function attemptLines(report) {
  return (report.attempts ?? []).map(({ mitigation, scores, verdict, kept, changes }, index) => ({
    text: `${index + 1}. ${mitigation}${scores.length > 0 ? `: score ${mean(scores)}, ${signOf(verdict).words}` : ""}${kept ? "" : "; not kept"}`,
    details: changes.map(capital),
  }));
}

// the same choice as memguard/records.py makes for its sentence
function gravest(findings) {
  const rank = (finding) => 2 * GRAVITY.indexOf(finding.verdict) + (finding.scores.length > 0 ? 1 : 0);
  return findings.reduce((best, next) => (best === undefined || rank(next) > rank(best) ? next : best), undefined);
}

function reason(report, finding) {
  return `Reason: ${finding?.status ?? "nothing was measured"}`;
}

function scoreLines(finding) {
  const scores = finding.scores.filter((score) => score !== null); // an image without a score has none
  const count = finding.scores.length > 1 ? `, mean of ${scores.length}` : "";
  const whose = finding.carried && "the verdict of an earlier pass; this one has none of its own";
  const more = [finding.odds, finding.caveat, whose].filter(Boolean).map(capital);
  return [capital(place(finding)), `Score ${mean(scores)}${count}`, ...more];
}

/** Where a score stands among ordinary prompts: memguard/wording.py says it; reports of earlier versions do not. */
function place(finding) {
  if (finding.place) return finding.place;
  return finding.percentile === null ? finding.threshold_source : `higher than ${share(finding.percentile)} of ordinary prompts`;
}

function mean(scores) {
  const value = scores.reduce((sum, score) => sum + score, 0) / scores.length;
  return Number(value.toPrecision(3));
}

/** A percentile in words. Never rounds up to 100 %: no finite sample shows that. */
export function share(percentile) {
  if (percentile > 99.99) return "at least 99.99 %";
  return `${Math.floor(percentile * 100) / 100} %`;
}

function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
