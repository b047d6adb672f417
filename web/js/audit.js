// The panel of Audit LoRA: verdict, the command line's table, and a line for each copied picture.
// @ts-check
/** @import { Verdict } from "./report.js" */

import { part } from "./dom.js";
import { addPanel } from "./panel.js";
import { SIGNS } from "./signs.js";

const KEPT = "memguardAudit"; // of a node's properties: an audit takes long, so its workflow keeps it

/** @typedef {{ verdict: string, tone: Verdict, table: string[][], lines: string[] }} Audited */

export class Audit {
  #node;
  #panel;

  constructor(/** @type {ComfyUI.Node} */ node) {
    this.#node = node;
    this.#panel = addPanel(node, "memguard_audit", "MemGuard: audit");
    this.#panel.element.setAttribute("role", "status");
    this.#paint(part("div", "memguard-line", "No audit yet"));
  }

  /** Show an audit and keep it with the workflow. */
  show(/** @type {Audited} */ shown) {
    this.#node.properties[KEPT] = { node: String(this.#node.id), shown };
    this.#repaint(shown);
  }

  /** Show what the workflow kept; a copy of a node made no audit. */
  restore() {
    const { node, shown } = this.#node.properties?.[KEPT] ?? {};
    if (node !== String(this.#node.id)) delete this.#node.properties?.[KEPT];
    else if (isAudit(shown)) this.#repaint(shown, "From the saved workflow, until the next audit.");
  }

  #repaint(/** @type {Audited} */ { verdict, tone, table, lines }, origin = "") {
    const bar = part("div", "memguard-verdict");
    const sign = part("span", "memguard-mark", SIGNS[tone]?.mark ?? "–");
    sign.setAttribute("aria-hidden", "true");
    bar.append(sign, part("span", "memguard-words", verdict));
    this.#panel.element.dataset.tone = tone;
    const said = lines.map((line) => part("div", "memguard-line", line));
    this.#paint(bar, part("div", "memguard-origin memguard-line", origin), tableOf(table), ...said);
  }

  #paint(/** @type {Node[]} */ ...parts) {
    this.#panel.content.replaceChildren(...parts);
  }
}

/** Whether a value is what the node sends: the file of a workflow may be another version's, or edited by hand. */
export function isAudit(/** @type {any} */ shown) {
  const texts = (/** @type {unknown} */ values) => Array.isArray(values) && values.every((value) => typeof value === "string");
  return typeof shown?.verdict === "string" && texts(shown.lines) && Array.isArray(shown.table) && shown.table.every(texts);
}

function tableOf(/** @type {string[][]} */ [head = [], ...rows]) {
  const table = part("table", "memguard-table");
  const first = part("tr", "");
  first.append(...head.map((cell) => part("th", "", cell)));
  table.append(first);
  for (const row of rows) {
    const line = part("tr", "");
    line.append(...row.map((cell) => part("td", "", cell)));
    table.append(line);
  }
  return table;
}
