// What a node shows, an entry {report, runs, prompt, check, saved}: of the runs of one prompt id (a hires pass, a detailer,
// a list) the gravest on top and the others below it; and what of it is saved with the workflow. No DOM.

import { describe } from "./verdict.js";

const GRAVITY = { none: 0, unknown: 1, ordinary: 2, suspicious: 3, memorized: 4 };
const KEPT = 64; // runs of one prompt
const LISTED = 12;
const LISTS = ["token_scores", "layers"]; // of an attribution; the page shows none of them

/** How grave the picture is that a run made; a verdict of its own counts more than one that was taken over. */
export function gravity(report) {
  const { tone } = describe(report);
  const own = report.findings.some(({ verdict, carried }) => verdict !== "unknown" && !carried);
  const treated = (report.attempts ?? []).some(({ kept }) => kept);
  // what was treated was graver than it is; without a new score nothing shows how it is now
  const now = treated && tone === "unknown" ? GRAVITY.ordinary : GRAVITY[tone];
  return 4 * now + (treated ? 2 : 0) + (own ? 1 : 0);
}

/** The entry {report, runs, prompt, ...} of a node that shows one and gets the report of `next`. */
export function gathered(shown, next) {
  if (!shown || !next.prompt || shown.prompt !== next.prompt) return { ...next, runs: [next.report] };
  const found = new Map((shown.runs ?? [shown.report]).map((report) => [report.run, report]));
  found.set(next.report.run, next.report);
  const all = [...found.values()];
  const whole = all.filter(({ findings }) => findings); // a saved workflow keeps lines of the others only
  const report = whole.reduce((best, one) => (gravity(one) > gravity(best) ? one : best));
  const last = all.slice(-KEPT);
  return { ...next, report, runs: last.includes(report) ? last : [report, ...last.slice(1)] };
}

/** What a saved workflow keeps of a run that is listed and not shown. */
export function brief(report) {
  if (!report.findings) return report;
  const { run, created, width, height } = report;
  const { mark, text, sentence } = describe(report);
  return { run, created, width, height, mark, text, sentence };
}

/** The lines of the runs that an entry does not show: {text, sentence}. */
export function otherLines({ report, runs }) {
  const others = (runs ?? []).filter(({ run }) => run !== report.run);
  const lines = others.slice(-LISTED).map((other) => {
    const { mark, text, width, height, sentence } = brief(other);
    return { text: `${mark} ${text}${width && height ? `, ${width} × ${height}` : ""}`, sentence };
  });
  const more = others.length - lines.length;
  return more > 0 ? [...lines, { text: `and ${more} more`, sentence: "" }] : lines;
}

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
