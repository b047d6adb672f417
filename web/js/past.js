// What the page says of a prompt that looked memorized before. Words only: no DOM, no ComfyUI, so that node can test it.

import { share } from "./words.js";

const NAMED = 5; // words that a sentence lists

/** The warning of the server's memory with its evidence. */
export function sentence(warning) {
  return `${cause(warning)} (${evidence(warning).join(", ")}). Nothing was computed now.`;
}

/** The same in a few words. */
export function cause({ kind, words }) {
  if (kind === "prompt" || words.length === 0) return "This prompt looked memorized before";
  const more = words.length > NAMED ? ", …" : "";
  return `These words drove a memorized run before: ${words.slice(0, NAMED).join(", ")}${more}`;
}

function evidence({ verdict, score, percentile, checkpoint, seed, created }) {
  const found = [];
  if (verdict === "suspicious") found.push("it may be memorized");
  if (Number.isFinite(score)) found.push(`score ${Number(score.toPrecision(3))}`);
  if (Number.isFinite(percentile)) found.push(`higher than ${share(percentile)} of ordinary prompts`);
  if (checkpoint) found.push(String(checkpoint));
  if (seed !== null && seed !== undefined) found.push(`seed ${seed}`);
  if (created) found.push(String(created).slice(0, 10));
  return found;
}

/** What the settings say of the memory: how much is kept, and why nothing is where it is off. */
export function memoryLine({ enabled, status, runs, bytes }) {
  if (status !== "ok") return `The memory is off: ${status}`;
  const size = bytes < 1024 ? `${bytes} B` : `${Math.round(bytes / 1024)} KiB`;
  return `${runs} ${runs === 1 ? "run" : "runs"} remembered, ${size}${enabled ? "" : "; new runs are not"}`;
}
