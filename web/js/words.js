// What the page says about a report. Words only: no DOM, no ComfyUI, so that node can test it.
// The sentence itself (report.message) is written by memguard/records.py and shown as it comes.

import { outcome } from "./attempts.js";

const BADGES = {
  memorized: { mark: "■", text: "Looks memorized" },
  suspicious: { mark: "▲", text: "May be memorized" },
  ordinary: { mark: "✓", text: "Looks ordinary" },
  unknown: { mark: "?", text: "No verdict" },
};
const NO_SCORE = { tone: "none", mark: "–", text: "No score" };
const GRAVITY = ["ordinary", "suspicious", "memorized"];

/** What a badge shows: tone (for the colour), mark, text, lines of explanation, and the sentence for screen readers. */
export function describe(report) {
  const finding = gravest(report.findings ?? []);
  const scored = finding !== undefined && finding.scores.length > 0;
  const after = outcome(report);
  const badge = after ?? (scored ? { tone: finding.verdict, ...BADGES[finding.verdict] } : NO_SCORE);
  const lines = scored ? scoreLines(finding) : [reason(report, finding)];
  const shown = after ? lines.map((line) => `Before: ${line.charAt(0).toLowerCase()}${line.slice(1)}`) : lines;
  return { ...badge, lines: [...shown, ...(report.notes ?? [])], sentence: report.message };
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
