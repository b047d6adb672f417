// The badge and the panel of words: one small element per node. Plain DOM, so that the classic canvas and Nodes 2.0 both show it.

import { chips, lines } from "./chips.js";
import { describe } from "./words.js";

const STYLE = new URL("../memguard.css", import.meta.url);
const IDLE = "No run yet";
const MARGIN = 8; // around a widget, in the canvas's own units
const BORDER = 2;

/** Load the colours once per page; ComfyUI loads scripts only. */
export function loadStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = STYLE.href;
  document.head.append(link);
}

/** Add a badge to a node. Its state is a result, so it is saved neither in the workflow nor in the prompt. */
export function addBadge(node) {
  const widget = addPanel(node, "memguard_verdict");
  fill(widget.element, { tone: "none", mark: "–", text: IDLE, lines: [], sentence: `MemGuard: ${IDLE}` });
  return widget;
}

/** Add a panel for the words of an attribution. */
export function addWords(node) {
  const widget = addPanel(node, "memguard_words");
  widget.element.firstChild.append(part("div", "memguard-line", IDLE));
  return widget;
}

/** Show an attribution in a node's panel: each word on its colour, with its weight; both are text. */
export function showWords(node, widget, attribution) {
  const row = part("div", "memguard-chips", "");
  for (const chip of attribution.status === "ok" ? chips(attribution) : []) {
    const element = part("span", "memguard-chip", chip.word);
    element.append(part("small", "memguard-weight", chip.weight));
    Object.assign(element.style, { background: chip.background, color: chip.colour });
    element.title = chip.title;
    element.tabIndex = 0;
    element.setAttribute("aria-label", chip.title);
    row.append(element);
  }
  widget.element.firstChild.replaceChildren(row, ...lines(attribution).map((line) => part("div", "memguard-line", line)));
  makeRoom(node);
}

function addPanel(node, name) {
  const element = document.createElement("div");
  element.className = "memguard-badge";
  element.tabIndex = 0; // reading it must not need a mouse
  element.setAttribute("role", "status"); // a screen reader says each new verdict
  element.append(document.createElement("div"));
  // as high as its text, also in a node with room to spare; offsetHeight is 0 until the element is on screen
  const height = () => Math.max(element.firstChild.offsetHeight, 40) + 2 * MARGIN + BORDER;
  const widget = node.addDOMWidget(name, "memguard_badge", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: height,
    getMaxHeight: height,
    margin: MARGIN,
  });
  widget.serialize = false;
  return widget;
}

/** Show a report in a node's badge, and make room for it. */
export function showReport(node, widget, report) {
  fill(widget.element, describe(report));
  makeRoom(node);
}

function makeRoom(node) {
  // after the browser has laid the new text out
  requestAnimationFrame(() => {
    const [width, height] = node.size;
    const needed = node.computeSize()[1];
    if (height < needed) node.setSize([width, needed]);
    node.setDirtyCanvas(true, true);
  });
}

function fill(element, { tone, mark, text, lines, sentence }) {
  const verdict = part("div", "memguard-verdict", "");
  const sign = part("span", "memguard-mark", mark);
  sign.setAttribute("aria-hidden", "true");
  verdict.append(sign, part("span", "memguard-words", text));
  element.dataset.tone = tone;
  element.title = sentence;
  element.firstChild.replaceChildren(verdict, ...lines.map((line) => part("div", "memguard-line", line)));
}

// textContent only: prompts and file names of others pass through here
function part(tag, name, text) {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
}
