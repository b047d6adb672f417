// A line at a text node that says what is known of its text. It is there only as long as there is something to say, so
// that a workflow's nodes and their values stay as they are.

import { part } from "./dom.js";
import { addPanel, makeRoom } from "./panel.js";

const LEAST = 18;
const flags = new WeakMap(); // node -> widget

/** Show a line at a node, or take it back with null. */
export function flag(node, line) {
  if (!node) return;
  const widget = flags.get(node);
  if (line === null) {
    if (widget && node.widgets?.includes(widget)) node.removeWidget(widget);
    flags.delete(node);
  } else {
    const shown = widget && node.widgets?.includes(widget) ? widget : add(node);
    const text = `▲ ${line}`;
    if (shown.element.textContent !== text) shown.element.firstChild.replaceChildren(part("div", "memguard-known", text));
  }
  makeRoom(node);
}

function add(node) {
  const widget = addPanel(node, "memguard_known", "MemGuard: this prompt was seen before", LEAST);
  widget.element.setAttribute("role", "status");
  flags.set(node, widget);
  return widget;
}
