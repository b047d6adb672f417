// What a node shows, an entry {report, runs, prompt, check, saved}: of the runs of one prompt id (a hires pass, a detailer,
// a list) the gravest on top and the others below it; and what of it is saved with the workflow. No DOM.
// @ts-check
/** @import { Attribution, Report } from "./report.js" */
/** @import { Brief, Entry } from "./types.js" */

import { describe } from "./verdict.js";

const GRAVITY = { none: 0, unknown: 1, ordinary: 2, suspicious: 3, memorized: 4 };
const KEPT = 64; // runs of one prompt
const LISTED = 12;

/** How grave the picture is that a run made; a verdict of its own counts more than one that was taken over. */
export function gravity(/** @type {Report} */ report) {
  const { tone } = describe(report);
  const own = report.findings.some(({ verdict, carried }) => verdict !== "unknown" && !carried);
  const treated = (report.attempts ?? []).some(({ kept }) => kept);
  // what was treated was graver than it is; without a new score nothing shows how it is now
  const now = treated && tone === "unknown" ? GRAVITY.ordinary : GRAVITY[tone];
  return 4 * now + (treated ? 2 : 0) + (own ? 1 : 0);
}

/**
 * The entry of a node that shows one and gets the report of `next`.
 * @param {Entry | null} shown
 * @param {Entry} next
 * @returns {Entry}
 */
export function gathered(shown, next) {
  if (!shown || !next.prompt || shown.prompt !== next.prompt) return { ...next, runs: [next.report] };
  /** @type {Map<string, Report | Brief>} */
  const found = new Map((shown.runs ?? [shown.report]).map((report) => [report.run, report]));
  found.set(next.report.run, next.report);
  const all = [...found.values()];
  const whole = all.filter((one) => "findings" in one); // a saved workflow keeps lines of the others only
  const report = whole.reduce((best, one) => (gravity(one) > gravity(best) ? one : best));
  const last = all.slice(-KEPT);
  return { ...next, report, runs: last.includes(report) ? last : [report, ...last.slice(1)] };
}

/**
 * What a saved workflow keeps of a run that is listed and not shown.
 * @returns {Brief}
 */
export function brief(/** @type {Report | Brief} */ report) {
  if (!("findings" in report)) return report;
  const { run, created, width, height } = report;
  const { mark, text, sentence } = describe(report);
  return { run, created, width, height, mark, text, sentence };
}

/** The lines of the runs that an entry does not show: {text, sentence}. */
export function otherLines(/** @type {Entry} */ { report, runs }) {
  const others = (runs ?? []).filter(({ run }) => run !== report.run);
  const lines = others.slice(-LISTED).map((other) => {
    const { mark, text, width, height, sentence } = brief(other);
    return { text: `${mark} ${text}${width && height ? `, ${width} × ${height}` : ""}`, sentence };
  });
  const more = others.length - lines.length;
  return more > 0 ? [...lines, { text: `and ${more} more`, sentence: "" }] : lines;
}

/** What the workflow keeps of a node's entry: what the panel shows, no more. */
export function compact(/** @type {Entry} */ { report, runs, prompt, check }, /** @type {number | undefined} */ node = undefined) {
  const findings = report.findings.map(({ per_step, ...finding }) => finding);
  const attribution = report.attribution && shown(report.attribution);
  const others = (runs ?? []).filter(({ run }) => run !== report.run).map(brief);
  return { node: String(node), report: { ...report, findings, attribution }, others, prompt: prompt ?? null, check: Boolean(check) };
}

/**
 * The entry in a node's properties, or null: the file may be another version's or edited by hand, and a copy of a node
 * has the properties of the one that ran.
 * @param {Record<string, any> | null | undefined} properties
 * @param {number | string} [node]
 * @returns {Entry | null}
 */
export function restored(properties, node) {
  const kept = properties?.memguard;
  if (typeof kept?.report?.run !== "string" || !Array.isArray(kept.report.findings)) return null;
  if (kept.node !== undefined && kept.node !== String(node)) return null;
  const others = Array.isArray(kept.others) ? kept.others.filter((/** @type {any} */ other) => typeof other?.run === "string") : [];
  return { ...kept, runs: [kept.report, ...others], saved: true };
}

/** Whether a report may come in the place of another one, or to it: of the same prompt, or of a run not older. */
export function replaces(/** @type {Entry} */ next, /** @type {Entry | null} */ shown) {
  if (!shown || next.report.run === shown.report.run || (next.prompt && next.prompt === shown.prompt)) return true;
  return (next.report.created ?? "") >= (shown.report.created ?? "");
}

// of an attribution; the page shows none of the lists that are left out
function shown(/** @type {Attribution} */ { token_scores, layers, ...attribution }) {
  return attribution;
}
