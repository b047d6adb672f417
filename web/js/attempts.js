// What was tried to mitigate a run, in words. No DOM, no ComfyUI, so that node can test it.

const NOW = { memorized: "looks memorized", suspicious: "may be memorized", ordinary: "looks ordinary" };
const AFTER = {
  memorized: { tone: "memorized", mark: "■", text: "Still looks memorized" },
  suspicious: { tone: "suspicious", mark: "▲", text: "Still may be memorized" },
  ordinary: { tone: "ordinary", mark: "✓", text: "Mitigated" },
  unknown: { tone: "unknown", mark: "?", text: "Mitigated, not scored again" },
};
const FAILED = { tone: "memorized", mark: "■", text: "Could not be mitigated" };

/** The verdict of a run after mitigation: tone, mark and text; null where nothing was tried. */
export function outcome(report) {
  if (!report.attempts?.length) return null;
  return report.attempts.some(({ kept }) => kept) ? AFTER[report.verdict_after] : FAILED;
}

/** One line per attempt: what it was, the score after it, and whether the run went on with it; then what it changed. */
export function attemptLines(report) {
  return (report.attempts ?? []).map(({ mitigation, scores, verdict, kept, changes }, index) => ({
    text: `${index + 1}. ${mitigation}${scores.length > 0 ? `: score ${mean(scores)}, ${NOW[verdict] ?? "no verdict"}` : ""}${kept ? "" : "; not kept"}`,
    details: changes.map((change) => change.charAt(0).toUpperCase() + change.slice(1)),
  }));
}

function mean(values) {
  return Number((values.reduce((sum, value) => sum + value, 0) / values.length).toPrecision(3));
}
