// Which report a node shows, and what of it is saved with the workflow. No DOM, no ComfyUI, so that node can test it.

import { brief } from "./passes.js";

const LISTS = ["token_scores", "layers"]; // of an attribution; the page shows none of them

/** What the workflow keeps of a node's entry {report, runs, prompt, check}: what the panel shows, no more. */
export function compact({ report, runs, prompt, check }, node) {
  const findings = report.findings.map(({ per_step, ...finding }) => finding);
  const attribution = report.attribution && without(report.attribution, LISTS);
  const others = (runs ?? []).filter(({ run }) => run !== report.run).map(brief);
  const shown = { ...report, findings, attribution };
  return { node: String(node), report: shown, others, prompt: prompt ?? null, check: Boolean(check) };
}

/**
 * The entry in a node's properties, or null: the file may be another version's or edited by hand, and a copy of a node
 * has the properties of the one that ran.
 */
export function restored(properties, node) {
  const kept = properties?.memguard;
  if (typeof kept?.report?.run !== "string" || !Array.isArray(kept.report.findings)) return null;
  if (kept.node !== undefined && kept.node !== String(node)) return null;
  const others = Array.isArray(kept.others) ? kept.others.filter((other) => typeof other?.run === "string") : [];
  return { ...kept, runs: [kept.report, ...others], saved: true };
}

/** Whether a report may come in the place of another one, or to it: of the same prompt, or of a run not older. */
export function replaces(next, shown) {
  if (!shown || next.report.run === shown.report.run || (next.prompt && next.prompt === shown.prompt)) return true;
  return (next.report.created ?? "") >= (shown.report.created ?? "");
}

function without(values, names) {
  return Object.fromEntries(Object.entries(values).filter(([name]) => !names.includes(name)));
}
