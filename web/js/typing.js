// Warnings while a prompt is typed: what the memory of finished runs knows of the texts that feed guarded samplers.
// Nothing is computed. The listener is the document's, so no widget of any node is touched; both renderers type into
// the same values.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { plainPrompt } from "./graph.js";
import { flag, unflag } from "./flags.js";
import { remindsOf } from "./passes.js";
import { cause, sentence } from "./past.js";
import { nodeAt } from "./places.js";
import { known } from "./server.js";
import { onChange, setting } from "./settings.js";
import { checkpointsOf, samplersOf, textsOf } from "./wiring.js";

const PAUSE = 250; // ms without a key

/** Watch the texts of the open workflow; `badgeOf` gives the badge of a MemGuard node. Returns the function that looks again. */
export function watchTyping(badgeOf) {
  const watch = new Watch(badgeOf);
  const soon = () => watch.soon();
  document.addEventListener("input", soon, true);
  api.addEventListener("graphChanged", soon); // links, and names of checkpoints
  onChange(() => watch.again());
  return () => watch.again();
}

class Watch {
  #badgeOf;
  #timer = null;
  #asked = ""; // what was asked last, as text
  #turn = 0;
  #flagged = new Set(); // nodes
  #warned = new Set(); // badges

  constructor(badgeOf) {
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
    const guards = setting("WarnWhileTyping") ? guardsOf(plainPrompt(root)) : [];
    const asked = JSON.stringify([root.id, guards]);
    if (asked === this.#asked) return;
    this.#asked = asked;
    const turn = ++this.#turn;
    const ask = ({ texts, wholes, checkpoints }) => known([...texts.map(({ text }) => text), ...wholes], checkpoints);
    const answers = await Promise.all(guards.map(ask));
    if (turn === this.#turn) this.#show(root, guards, answers);
  }

  #show(root, guards, answers) {
    const flags = new Map();
    const warned = new Set();
    guards.forEach(({ guard, texts }, which) => {
      const whole = answers[which].slice(texts.length).find((warning) => warning);
      const found = texts.map(({ id }, index) => [id, answers[which][index] ?? whole]).filter(([, warning]) => warning);
      const badge = this.#badgeOf(nodeAt(root, guard));
      // under the verdict of the very run that a warning reminds of it says nothing
      const earlier = found.filter(([, warning]) => !remindsOf(warning, badge?.entry));
      badge?.warn([...new Set(earlier.map(([, warning]) => sentence(warning)))]);
      if (badge && found.length > 0) warned.add(badge);
      for (const [id, warning] of found) if (nodeAt(root, id)) flags.set(nodeAt(root, id), warning);
    });
    for (const badge of this.#warned) if (!warned.has(badge)) badge.warn([]);
    for (const node of this.#flagged) if (!flags.has(node)) unflag(node);
    for (const [node, warning] of flags) flag(node, cause(warning), sentence(warning));
    this.#warned = warned;
    this.#flagged = new Set(flags.keys());
  }
}

function guardsOf(prompt) {
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
