// The runs of one prompt id on one node: a hires pass, a detailer, a list. The gravest stays on top, the others are
// listed below it. No DOM, no ComfyUI, so that node can test it.

import { describe } from "./words.js";

const GRAVITY = { none: 0, unknown: 1, ordinary: 2, suspicious: 3, memorized: 4 };
const KEPT = 64; // runs of one prompt
const LISTED = 12;

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

/** Whether a warning of the server's memory reminds of a run that is shown itself. */
export function remindsOf({ kind, created }, entry) {
  if (kind !== "prompt" || !entry || !created) return false;
  return [entry.report, ...(entry.runs ?? [])].some((report) => report.created === created);
}
