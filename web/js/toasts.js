// One toast per workflow: what is flagged while it stands is told in the same one. No DOM, no ComfyUI.
// @ts-check
/** @import { Report } from "./report.js" */
/** @typedef {Pick<Report, "policy" | "message">} Warned */

const MINUTE = 60000; // long enough for someone who looked away while it sampled
const LISTED = 3; // sentences
const FLAGGED = ["suspicious", "memorized"];

/** Whether a person asked to be warned, and there is something to warn of. */
export function warns(/** @type {Report} */ report) {
  return (report.policy === "warn" || report.policy === "stop") && FLAGGED.includes(report.verdict);
}

/** The toast for the reports of one workflow that warn, the newest last. */
export function toast(/** @type {Warned[]} */ reports) {
  const stopped = reports.some(({ policy }) => policy === "stop");
  const title = stopped ? "MemGuard stopped this run" : "MemGuard warning";
  const said = [...new Set(reports.map(({ message }) => message))];
  const more = said.length - LISTED;
  const lines = [...said.slice(-LISTED), ...(more > 0 ? [`and ${more} more`] : [])];
  const summary = reports.length > 1 ? `${title}: ${reports.length} runs` : title;
  return { severity: "warn", summary, detail: lines.join("\n"), life: MINUTE };
}

/**
 * The toasts that stand. `shelf` is ComfyUI's own: {add, remove}, in newer frontends {warning}, where a toast of the same
 * id takes the place of the one before; `now` the time in milliseconds.
 */
export class Toasts {
  #shelf;
  #now;
  /** @type {Map<string, { reports: Warned[], message: ComfyUI.Toast, until: number }>} */
  #standing = new Map(); // by workflow

  constructor(/** @type {ComfyUI.Shelf} */ shelf, now = Date.now) {
    this.#shelf = shelf;
    this.#now = now;
  }

  /** Tell of a report, in the place of what stands for its workflow. */
  tell(/** @type {string} */ workflow, /** @type {Warned} */ report) {
    const before = this.#standing.get(workflow);
    const fresh = before && before.until > this.#now() ? before : null;
    const reports = [...(fresh?.reports ?? []), report];
    const message = toast(reports);
    this.#standing.set(workflow, { reports, message, until: this.#now() + message.life });
    this.#put(workflow, message, fresh?.message);
  }

  #put(/** @type {string} */ workflow, /** @type {ComfyUI.Toast} */ message, /** @type {ComfyUI.Toast | undefined} */ before) {
    const { summary, detail, life } = message;
    if (this.#shelf.warning) {
      this.#shelf.warning(summary, { id: `memguard/${workflow}`, description: detail, duration: life });
      return;
    }
    if (before) this.#shelf.remove?.(before);
    this.#shelf.add(message);
  }
}
