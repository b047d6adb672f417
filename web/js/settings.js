// MemGuard's page in the settings of ComfyUI. Each setting is saved by ComfyUI itself; the memory is the server's.
// @ts-check
/** @import { Memory } from "./types.js" */

import { app } from "../../../scripts/app.js";
import { button, part } from "./dom.js";
import { forget, memory } from "./server.js";

const SENSITIVITY = 99;
const changed = new EventTarget();

/** The value of a setting by its short name: "Colours", "Toast", "WarnWhileTyping", "Sensitivity". */
export function setting(/** @type {string} */ name) {
  return app.extensionManager.setting.get(`MemGuard.${name}`);
}

/** Call a function when a setting that changes what is shown was changed. */
export function onChange(/** @type {() => void} */ act) {
  changed.addEventListener("change", act);
}

// some frontends store the new value only after they have told of it
function tell() {
  queueMicrotask(() => changed.dispatchEvent(new Event("change")));
}

export const settings = [
  {
    id: "MemGuard.Sensitivity",
    category: ["MemGuard", "New nodes", "Sensitivity"],
    name: "Sensitivity of new MemGuard nodes (percentile of ordinary prompts)",
    tooltip: "A prompt is flagged above it: at 99, about 1 ordinary prompt in 100 is.",
    type: "number",
    attrs: { min: 50, max: 99.99, step: 0.01, maxFractionDigits: 2 },
    defaultValue: SENSITIVITY,
  },
  {
    id: "MemGuard.Colours",
    category: ["MemGuard", "Display", "Colours"],
    name: "Colours of words and maps",
    tooltip: "Both rise evenly in lightness; numbers stand beside every colour.",
    type: "combo",
    options: [
      { text: "Blue to yellow", value: "colour" },
      { text: "Grey", value: "grey" },
    ],
    defaultValue: "colour",
    onChange: tell,
  },
  {
    id: "MemGuard.Toast",
    category: ["MemGuard", "Display", "Toast"],
    name: "Show a toast when a run is flagged",
    tooltip: "Only for nodes with policy warn or stop. The badge shows the verdict in any case.",
    type: "boolean",
    defaultValue: true,
  },
  {
    id: "MemGuard.WarnWhileTyping",
    category: ["MemGuard", "Memory", "WarnWhileTyping"],
    name: "Warn while typing a prompt that looked memorized before",
    tooltip: "Looks the text up among finished runs; nothing is computed.",
    type: "boolean",
    defaultValue: true,
    onChange: tell,
  },
  {
    id: "MemGuard.Memory",
    category: ["MemGuard", "Memory", "Memory"],
    name: "Remember finished runs (prompt hash, words, score, seed; no pictures)",
    type: memoryRow,
    defaultValue: null,
  },
];

// asks the server when the settings are opened: another page may have switched it
function memoryRow() {
  const row = part("div", "memguard-memory");
  const label = part("label", "", "Remember runs ");
  const box = document.createElement("input");
  box.type = "checkbox";
  label.append(box);
  const line = part("span", "memguard-line", "Asking the server …");
  line.setAttribute("role", "status");
  const show = async (/** @type {Promise<Memory>} */ answer) => {
    const state = await answer;
    box.checked = Boolean(state.enabled);
    box.disabled = state.enabled === undefined;
    clear.disabled = !state.runs;
    line.textContent = memoryLine(state);
    tell();
  };
  const clear = button("Forget all runs", () => show(forget()));
  box.addEventListener("change", () => show(memory(box.checked)));
  row.append(label, clear, line);
  show(memory());
  return row;
}

/** What the settings say of the memory: how much is kept, and why nothing is where it is off. */
export function memoryLine(/** @type {Memory} */ { enabled, status, runs = 0, bytes = 0 }) {
  if (status !== "ok") return `The memory is off: ${status}`;
  const size = bytes < 1024 ? `${bytes} B` : `${Math.round(bytes / 1024)} KiB`;
  return `${runs} ${runs === 1 ? "run" : "runs"} remembered, ${size}${enabled ? "" : "; new runs are not"}`;
}
