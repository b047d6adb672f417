// The page's questions to the server: MemGuard's routes, and the pictures that runs produced, of each prompt the newest
// first. Through api.fetchApi, which knows where ComfyUI lives and who asks.

import { api } from "../../../scripts/api.js";

const KEPT = 50; // prompts

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

/** The answer of GET /memguard/v1/maps/<run> with its numbers unpacked. */
export function unpack({ run, size, maps, preview }) {
  const found = maps.map((map) => ({ ...map, values: bytes(map.data) }));
  return { run, size, maps: new Map(found.map((map) => [map.name, map])), preview };
}

/** The address of a picture that ComfyUI serves, below its API. */
export function viewPath({ filename, subfolder, type }) {
  return `/view?${new URLSearchParams({ filename, subfolder: subfolder ?? "", type: type ?? "output" })}`;
}

/** The pictures in the outputs of a finished prompt, {node: {images}} as in ComfyUI's history, the newest first. */
export function picturesIn(outputs) {
  const images = Object.values(outputs ?? {}).flatMap((output) => output?.images ?? []);
  return images.filter((image) => image?.filename).reverse();
}

/** A store of pictures by prompt id. */
export class Pictures {
  #found = new Map();

  /** Remember what a node of a prompt produced; outputs without a picture change nothing. */
  add(prompt, output) {
    const added = picturesIn({ output });
    if (!prompt || added.length === 0) return;
    const all = [...added, ...this.of(prompt)];
    this.#found.delete(prompt);
    this.#found.set(prompt, all);
    if (this.#found.size > KEPT) this.#found.delete(this.#found.keys().next().value);
  }

  /** The pictures of a prompt, the newest first. */
  of(prompt) {
    return this.#found.get(prompt) ?? [];
  }
}

function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
