// A line at a text node that says what is known of its text. It is there only as long as there is something to say, so
// that a workflow's nodes and their values stay as they are.

import { part } from "./dom.js";
import { addPanel, makeRoom } from "./panel.js";

const SMALL = { kind: "memguard-flag", least: 18, margin: 4 };
const flags = new WeakMap(); // node -> widget

/** Show a line at a node, with a sentence for who points at it. */
export function flag(node, line, sentence) {
  const { element } = flagOf(node) ?? add(node);
  element.title = sentence;
  const text = `▲ ${line}`;
  if (element.textContent !== text) element.firstChild.replaceChildren(part("div", "memguard-known", text));
}

/** Take the line at a node back. */
export function unflag(node) {
  const widget = flagOf(node);
  flags.delete(node);
  if (!widget) return;
  node.removeWidget(widget);
  makeRoom(node);
}

// undefined where the node has dropped it, as it may when it is configured again
function flagOf(node) {
  const widget = flags.get(node);
  return node.widgets?.includes(widget) ? widget : undefined;
}

function add(node) {
  const widget = addPanel(node, "memguard_known", "MemGuard: this prompt was seen before", SMALL);
  widget.element.setAttribute("role", "status");
  flags.set(node, widget);
  return widget;
}
