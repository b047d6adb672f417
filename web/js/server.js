// The page's questions to the server. Through api.fetchApi, which knows where ComfyUI lives and who asks.

import { api } from "../../../scripts/api.js";
import { unpack } from "./maps.js";
import { viewPath } from "./pictures.js";

/** The last reports of this server for a workflow, oldest first. Empty where the server cannot tell. */
export async function reportsOf(workflow) {
  const answer = await ask(`/reports?workflow=${encodeURIComponent(workflow)}`);
  return answer.reports ?? [];
}

/** The maps of a run. Throws an Error with one line where there are none. */
export async function mapsOf(run) {
  const answer = await ask(`/maps/${encodeURIComponent(run)}`);
  if (answer.gone) throw new Error("The server no longer keeps the maps of this run. Run the workflow again to see them.");
  if (answer.error) throw new Error(`No maps: ${answer.error}`);
  return unpack(answer);
}

/** What the memory of finished runs knows of texts: one warning or null for each. */
export async function known(texts, checkpoints) {
  const answer = await ask("/known", "POST", { texts, checkpoints });
  return answer.warnings ?? [];
}

/** The state of the memory; with `enabled` given, after switching it. */
export function memory(enabled) {
  return enabled === undefined ? ask("/memory") : ask("/memory", "POST", { enabled });
}

/** Forget all runs; the state of the memory afterwards. */
export function forget() {
  return ask("/memory", "DELETE");
}

/** What the nodes of a finished prompt put out, {node: output}, from ComfyUI's history; empty where it has none. */
export async function outputsOf(prompt) {
  const reply = await api.fetchApi(`/history/${encodeURIComponent(prompt)}`);
  return (reply.ok && (await reply.json())[prompt]?.outputs) || {};
}

/** The address of a picture in ComfyUI's folders. */
export function addressOf(picture) {
  return api.apiURL(viewPath(picture));
}

async function ask(path, method = "GET", body = undefined) {
  const options = { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  try {
    const reply = await api.fetchApi(`/memguard/v1${path}`, options);
    if (reply.status === 404 && path.startsWith("/maps/")) return { gone: true };
    return await reply.json();
  } catch {
    return { error: "the server gave no answer", status: "the server gave no answer" };
  }
}
