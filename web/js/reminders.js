// Warnings while a prompt is typed: what the memory of finished runs knows of the texts that feed guarded samplers.
// Nothing is computed. The listener is the document's, so no widget of any node is touched; both renderers type into
// the same values. A line at a text node is there only as long as there is something to say, so that a workflow's nodes
// and their values stay as they are.
// @ts-check
/** @import { Badge } from "./badge.js" */
/** @import { Brief, PlainPrompt, Warning } from "./types.js" */
/** @import { Report } from "./report.js" */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { part } from "./dom.js";
import { nodeAt, plainPrompt } from "./graph.js";
import { addPanel, makeRoom } from "./panel.js";
import { known } from "./server.js";
import { onChange, setting } from "./settings.js";
import { SIGNS } from "./signs.js";
import { share } from "./verdict.js";
import { checkpointsOf, samplersOf, textsOf } from "./wiring.js";

const NAMED = 5; // words that a sentence lists
/** @typedef {(node: ComfyUI.Node | null | undefined) => Badge | undefined} BadgeOf */
/** @typedef {{ created?: string }} Created */
/** @typedef {ReturnType<typeof guardedTexts>[number]} Guarded */

const PAUSE = 250; // ms without a key
const SMALL = { kind: "memguard-flag", least: 18, margin: 4 };
/** @type {WeakMap<ComfyUI.Node, ReturnType<typeof addPanel>>} */
const flags = new WeakMap(); // by text node

/** The warning of the server's memory with its evidence. */
export function sentence(/** @type {Warning} */ warning) {
  return `${cause(warning)} (${evidence(warning).join(", ")}). Nothing was computed now.`;
}

/** The same in a few words. */
export function cause(/** @type {Warning} */ { kind, words }) {
  if (kind === "prompt" || words.length === 0) return "This prompt looked memorized before";
  const more = words.length > NAMED ? ", …" : "";
  return `These words drove a memorized run before: ${words.slice(0, NAMED).join(", ")}${more}`;
}

function evidence(/** @type {Warning} */ { verdict, score, percentile, checkpoint, seed, created }) {
  const found = [];
  if (verdict === "suspicious") found.push(`it ${SIGNS.suspicious.words}`);
  if (typeof score === "number") found.push(`score ${Number(score.toPrecision(3))}`);
  if (typeof percentile === "number") found.push(`higher than ${share(percentile)} of ordinary prompts`);
  if (checkpoint) found.push(String(checkpoint));
  if (seed !== null && seed !== undefined) found.push(`seed ${seed}`);
  if (created) found.push(String(created).slice(0, 10));
  return found;
}

/** Whether a warning of the server's memory reminds of a run that is shown itself. */
export function remindsOf(/** @type {Pick<Warning, "kind" | "created">} */ { kind, created }, /** @type {{ report: Created, runs?: Created[] } | null | undefined} */ entry) {
  if (kind !== "prompt" || !entry || !created) return false;
  return [entry.report, ...(entry.runs ?? [])].some((report) => report.created === created);
}

/** Watch the texts of the open workflow; `badgeOf` gives the badge of a MemGuard node. Returns the function that looks again. */
export function watchTyping(/** @type {BadgeOf} */ badgeOf) {
  const watch = new Watch(badgeOf);
  const soon = () => watch.soon();
  document.addEventListener("input", soon, true);
  api.addEventListener("graphChanged", soon); // links, and names of checkpoints
  onChange(() => watch.again());
  return () => watch.again();
}

class Watch {
  #badgeOf;
  #timer = 0;
  #asked = ""; // what was asked last, as text
  #turn = 0;
  /** @type {Set<ComfyUI.Node>} */
  #flagged = new Set();
  /** @type {Set<Badge>} */
  #warned = new Set();

  constructor(/** @type {BadgeOf} */ badgeOf) {
    this.#badgeOf = badgeOf;
  }

  soon() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#look(), PAUSE);
  }

  // the memory itself may have changed
  again() {
    this.#asked = "";
    this.soon();
  }

  async #look() {
    const root = app.rootGraph ?? app.graph;
    const guards = setting("WarnWhileTyping") ? guardedTexts(plainPrompt(root)) : [];
    const asked = JSON.stringify([root.id, guards]);
    if (asked === this.#asked) return;
    this.#asked = asked;
    const turn = ++this.#turn;
    const ask = (/** @type {Guarded} */ { texts, wholes, checkpoints }) => known([...texts.map(({ text }) => text), ...wholes], checkpoints);
    const answers = await Promise.all(guards.map(ask));
    if (turn === this.#turn) this.#show(root, guards, answers);
  }

  /**
   * @param {ComfyUI.Graph} root
   * @param {Guarded[]} guards
   * @param {(Warning | null)[][]} answers of each guard, those to its texts and then to its wholes
   */
  #show(root, guards, answers) {
    /** @type {Map<ComfyUI.Node, Warning>} */
    const flags = new Map();
    /** @type {Set<Badge>} */
    const warned = new Set();
    guards.forEach(({ guard, texts }, which) => {
      const whole = answers[which].slice(texts.length).find((warning) => warning);
      const found = texts.flatMap(({ id }, index) => {
        const warning = answers[which][index] ?? whole;
        return warning ? [{ warning, node: nodeAt(root, id) }] : [];
      });
      const badge = this.#badgeOf(nodeAt(root, guard));
      // under the verdict of the very run that a warning reminds of it says nothing
      const earlier = found.filter(({ warning }) => !remindsOf(warning, badge?.entry));
      badge?.warn([...new Set(earlier.map(({ warning }) => sentence(warning)))]);
      if (badge && found.length > 0) warned.add(badge);
      for (const { node, warning } of found) if (node) flags.set(node, warning);
    });
    for (const badge of this.#warned) if (!warned.has(badge)) badge.warn([]);
    for (const node of this.#flagged) if (!flags.has(node)) unflag(node);
    for (const [node, warning] of flags) flag(node, cause(warning), sentence(warning));
    this.#warned = warned;
    this.#flagged = new Set(flags.keys());
  }
}

// of each guard the texts that its samplers get
function guardedTexts(/** @type {PlainPrompt} */ prompt) {
  const ids = Object.keys(prompt).filter((id) => prompt[id].class_type === "MemGuard");
  const all = ids.map((guard) => {
    const prompts = samplersOf(prompt, guard).map(({ positive }) => textsOf(prompt, positive));
    const texts = prompts.flat();
    // several boxes on one sampler are remembered as one prompt, joined as the report joins them
    const wholes = prompts.filter((boxes) => boxes.length > 1).map((boxes) => [...new Set(boxes.map(({ text }) => text))].join(" | "));
    const different = [...new Map(texts.map((text) => [`${text.id}/${text.name}`, text])).values()];
    return { guard, texts: different.filter(({ text }) => text.trim()), wholes, checkpoints: checkpointsOf(prompt, guard) };
  });
  return all.filter(({ texts }) => texts.length > 0);
}

// shows a line at a node, with a sentence for who points at it
function flag(/** @type {ComfyUI.Node} */ node, /** @type {string} */ line, /** @type {string} */ sentence) {
  const { element, content } = flagOf(node) ?? add(node);
  element.title = sentence;
  const text = `${SIGNS.suspicious.mark} ${line}`;
  if (element.textContent !== text) content.replaceChildren(part("div", "memguard-known", text));
}

// takes the line at a node back
function unflag(/** @type {ComfyUI.Node} */ node) {
  const panel = flagOf(node);
  flags.delete(node);
  if (!panel) return;
  node.removeWidget(panel.widget);
  makeRoom(node);
}

// undefined where the node has dropped it, as it may when it is configured again
function flagOf(/** @type {ComfyUI.Node} */ node) {
  const panel = flags.get(node);
  return panel && node.widgets?.includes(panel.widget) ? panel : undefined;
}

function add(/** @type {ComfyUI.Node} */ node) {
  const panel = addPanel(node, "memguard_known", "MemGuard: this prompt was seen before", SMALL);
  panel.element.setAttribute("role", "status");
  flags.set(node, panel);
  return panel;
}
