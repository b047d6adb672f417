// The panel on a node that shows a report: verdict, curve, words, maps, and what can be done with them.
// @ts-check
/** @import { Report } from "./report.js" */
/** @import { Atlas, Described, Entry } from "./types.js" */

import { chartOf } from "./chart.js";
import { button, copyButton, part } from "./dom.js";
import { otherLines } from "./entries.js";
import { buttonsOf, titleOf } from "./maps.js";
import { MapView } from "./mapview.js";
import { addPanel } from "./panel.js";
import { mapsOf } from "./server.js";
import { setting } from "./settings.js";
import { SIGNS } from "./signs.js";
import { attemptLines, describe } from "./verdict.js";
import { wordRows } from "./words.js";

/** @type {Described} */
const IDLE = { tone: "none", mark: "–", text: "No run yet", lines: [], sentence: "MemGuard: No run yet" };
const ORIGINS = {
  saved: "From the saved workflow, until the next run.",
  check: "Prompt check, not a run: scored before any sampling.",
};

/** The panel of a node. */
export class Badge {
  #panel;
  #picturesOf;
  /** @type {Entry | null} */
  #entry = null;
  /** @type {string | null} */
  #selected = null; // name of the map that is open
  /** @type {Atlas & { pictures: string[] } | null} */
  #atlas = null; // maps of the shown run, fetched on first use
  #verdict = part("div", "memguard-section");
  #others = part("div", "memguard-section");
  #known = part("div", "memguard-section");
  #details = part("div", "memguard-section");
  #map = part("div", "memguard-section");
  #said = part("div", "memguard-line");
  #copy = copyButton(() => JSON.stringify(this.#entry?.report, null, 2));

  /**
   * @param {ComfyUI.Node} node
   * @param {(entry: Entry) => Promise<string[]>} picturesOf addresses of the pictures of an entry's prompt
   * @param {(() => void) | null} check what the button "Check prompt" does; null leaves the button out
   */
  constructor(node, picturesOf, check = null) {
    this.#picturesOf = picturesOf;
    this.#panel = addPanel(node, "memguard_verdict", "MemGuard");
    for (const section of [this.#verdict, this.#known, this.#said]) section.setAttribute("role", "status");
    const actions = part("div", "memguard-actions");
    if (check) actions.append(button("Check prompt", check));
    actions.append(this.#copy);
    this.#panel.content.append(this.#verdict, this.#others, this.#known, this.#details, this.#map, actions, this.#said);
    this.repaint();
  }

  get entry() {
    return this.#entry;
  }

  /** Show an entry. */
  show(/** @type {Entry} */ entry) {
    const { run, maps } = entry.report;
    if (run !== this.#entry?.report.run || !maps?.some((name) => name === this.#selected)) {
      this.#selected = null;
      this.#atlas = null;
    }
    this.#entry = entry;
    this.say("");
    this.repaint();
  }

  /** Say one line at the foot; an empty one takes it back. */
  say(/** @type {string} */ text) {
    this.#said.textContent = text;
  }

  /** Show what is known of the prompt that is being typed: lines, none to take them back. */
  warn(/** @type {string[]} */ lines) {
    this.#known.replaceChildren(...lines.map((line) => part("div", "memguard-known", `${SIGNS.suspicious.mark} ${line}`)));
  }

  /** Show everything again, in the colours of the settings. */
  repaint() {
    const report = this.#entry?.report;
    this.#paintVerdict(report ? describe(report) : IDLE);
    this.#others.replaceChildren(...(this.#entry ? this.#paintOthers(this.#entry) : []));
    this.#copy.hidden = !report;
    this.#details.replaceChildren(...(report ? this.#paintDetails(report) : []));
    this.#paintMap();
  }

  #paintVerdict(/** @type {Described} */ { tone, mark, text, lines, sentence }) {
    const bar = part("div", "memguard-verdict");
    const sign = part("span", "memguard-mark", mark);
    sign.setAttribute("aria-hidden", "true");
    bar.append(sign, part("span", "memguard-words", text));
    const origins = [this.#entry?.check && ORIGINS.check, this.#entry?.saved && ORIGINS.saved].filter((line) => line);
    this.#panel.element.dataset.tone = tone;
    this.#verdict.title = sentence;
    this.#verdict.replaceChildren(
      bar,
      ...origins.map((line) => part("div", "memguard-origin", line || "")),
      ...lines.map((line) => part("div", "memguard-line", line)),
    );
  }

  #paintOthers(/** @type {Entry} */ entry) {
    const lines = otherLines(entry).map(({ text, sentence }) => {
      const line = part("div", "memguard-line", text);
      line.title = sentence;
      return line;
    });
    return lines.length > 0 ? [part("div", "memguard-part", "Other passes of this run:"), ...lines] : [];
  }

  #paintDetails(/** @type {Report} */ report) {
    const chart = chartOf(report.curve);
    const open = (/** @type {string} */ name) => this.#open(name);
    const selection = { maps: report.maps ?? [], selected: this.#selected, open };
    const buttons = part("div", "memguard-actions");
    for (const name of buttonsOf(report)) {
      const element = button(titleOf(name), () => open(name));
      element.setAttribute("aria-pressed", String(name === this.#selected));
      element.dataset.map = name;
      buttons.append(element);
    }
    return [
      ...attemptLines(report).map(({ text, details }) => {
        const line = part("div", "memguard-attempt", text);
        line.title = details.join("\n");
        line.append(...details.map((detail) => part("div", "memguard-change", detail)));
        return line;
      }),
      ...(chart ? [chart] : []),
      ...(report.attribution ? wordRows(report.attribution, setting("Colours"), selection) : []),
      ...(buttons.childElementCount > 0 ? [buttons] : []),
    ];
  }

  async #open(/** @type {string} */ name) {
    const entry = this.#entry;
    if (!entry) return;
    const { run } = entry.report;
    this.#selected = this.#selected === name ? null : name;
    this.#press();
    try {
      if (this.#selected && !this.#atlas) {
        this.say("Fetching the maps …");
        const atlas = await mapsOf(run);
        const pictures = [...(await this.#picturesOf(entry)), ...previewOf(atlas)];
        if (this.#entry?.report.run !== run) return; // a new run came meanwhile
        this.#atlas = { ...atlas, pictures };
      }
      this.say("");
    } catch (error) {
      this.#selected = null;
      this.#press();
      this.say(error instanceof Error ? error.message : String(error));
    }
    this.#paintMap();
  }

  // in place: the button that was pressed keeps the focus
  #press() {
    const buttons = /** @type {NodeListOf<HTMLElement>} */ (this.#details.querySelectorAll("[data-map]"));
    for (const element of buttons) {
      element.setAttribute("aria-pressed", String(element.dataset.map === this.#selected));
    }
  }

  #paintMap() {
    const map = this.#atlas?.maps.get(this.#selected ?? "");
    if (!this.#atlas || !map) return this.#map.replaceChildren();
    const spans = this.#entry?.report.attribution?.spans ?? [];
    const view = new MapView(this.#atlas, map, spans, this.#atlas.pictures, setting("Colours"));
    this.#map.replaceChildren(view.element);
  }
}

function previewOf(/** @type {Atlas} */ { preview }) {
  return preview ? [`data:image/png;base64,${preview}`] : [];
}
