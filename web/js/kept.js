// Which report a node shows, and what of it is saved with the workflow. No DOM, no ComfyUI, so that node can test it.

const LISTS = ["token_scores", "layers"]; // of an attribution; the page shows none of them

/** What the workflow keeps of an entry {report, prompt, check}: what the panel shows, no more. */
export function compact({ report, prompt, check }) {
  const findings = report.findings.map(({ per_step, ...finding }) => finding);
  const attribution = report.attribution && without(report.attribution, LISTS);
  return { report: { ...report, findings, attribution }, prompt: prompt ?? null, check: Boolean(check) };
}

/** The entry in a node's properties, or null: the file may be another version's or edited by hand. */
export function restored(properties) {
  const kept = properties?.memguard;
  if (typeof kept?.report?.run !== "string" || !Array.isArray(kept.report.findings)) return null;
  return { ...kept, saved: true };
}

/** Whether a report may replace another one: the same run with more in it, or a run that is not older. */
export function replaces(next, shown) {
  if (!shown || next.report.run === shown.report.run) return true;
  return (next.report.created ?? "") >= (shown.report.created ?? "");
}

function without(values, names) {
  return Object.fromEntries(Object.entries(values).filter(([name]) => !names.includes(name)));
}
