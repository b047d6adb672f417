// The page's questions to the server: MemGuard's routes, and the pictures that runs produced, of each prompt the newest
// first. Through api.fetchApi, which knows where ComfyUI lives and who asks.
// @ts-check
/** @import { Atlas, Memory, Packed, Picture, Size, Warning } from "./types.js" */

import { api } from "../../../scripts/api.js";

const KEPT = 50; // prompts

/** The last reports of this server for a workflow, oldest first. Empty where the server cannot tell. */
export async function reportsOf(/** @type {string} */ workflow) {
  const answer = await ask(`/reports?workflow=${encodeURIComponent(workflow)}`);
  return answer.reports ?? [];
}

/** The maps of a run. Throws an Error with one line where there are none. */
export async function mapsOf(/** @type {string} */ run) {
  const answer = await ask(`/maps/${encodeURIComponent(run)}`);
  if (answer.gone) throw new Error("The server no longer keeps the maps of this run. Run the workflow again to see them.");
  if (answer.error) throw new Error(`No maps: ${answer.error}`);
  return unpack(answer);
}

/**
 * What the memory of finished runs knows of texts: one warning or null for each.
 * @returns {Promise<(Warning | null)[]>}
 */
export async function known(/** @type {string[]} */ texts, /** @type {string[]} */ checkpoints) {
  const answer = await ask("/known", "POST", { texts, checkpoints });
  return answer.warnings ?? [];
}

/**
 * The state of the memory; with `enabled` given, after switching it.
 * @returns {Promise<Memory>}
 */
export function memory(/** @type {boolean | undefined} */ enabled = undefined) {
  return enabled === undefined ? ask("/memory") : ask("/memory", "POST", { enabled });
}

/**
 * Forget all runs; the state of the memory afterwards.
 * @returns {Promise<Memory>}
 */
export function forget() {
  return ask("/memory", "DELETE");
}

/** What the nodes of a finished prompt put out, {node: output}, from ComfyUI's history; empty where it has none. */
export async function outputsOf(/** @type {string} */ prompt) {
  const reply = await api.fetchApi(`/history/${encodeURIComponent(prompt)}`);
  return (reply.ok && (await reply.json())[prompt]?.outputs) || {};
}

/** The address of a picture in ComfyUI's folders. */
export function addressOf(/** @type {Picture} */ picture) {
  return api.apiURL(viewPath(picture));
}

async function ask(/** @type {string} */ path, method = "GET", /** @type {object | undefined} */ body = undefined) {
  const options = { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  try {
    const reply = await api.fetchApi(`/memguard/v1${path}`, options);
    if (reply.status === 404 && path.startsWith("/maps/")) return { gone: true };
    return await reply.json();
  } catch {
    return { error: "the server gave no answer", status: "the server gave no answer" };
  }
}

/**
 * The answer of GET /memguard/v1/maps/<run> with its numbers unpacked.
 * @param {{ run: string, size: Size, maps: Packed[], preview: string | null }} answer
 * @returns {Atlas}
 */
export function unpack({ run, size, maps, preview }) {
  const found = maps.map((map) => ({ ...map, values: bytes(map.data) }));
  return { run, size, maps: new Map(found.map((map) => [map.name, map])), preview };
}

/** The address of a picture that ComfyUI serves, below its API. */
export function viewPath(/** @type {Picture} */ { filename, subfolder, type }) {
  return `/view?${new URLSearchParams({ filename, subfolder: subfolder ?? "", type: type ?? "output" })}`;
}

/**
 * The pictures in the outputs of a finished prompt, {node: {images}} as in ComfyUI's history, the newest first.
 * @returns {Picture[]}
 */
export function picturesIn(/** @type {Record<string, any> | undefined} */ outputs) {
  const images = Object.values(outputs ?? {}).flatMap((output) => output?.images ?? []);
  return images.filter((image) => image?.filename).reverse();
}

/** A store of pictures by prompt id. */
export class Pictures {
  /** @type {Map<string, Picture[]>} */
  #found = new Map();

  /** Remember what a node of a prompt produced; outputs without a picture change nothing. */
  add(/** @type {string} */ prompt, /** @type {object} */ output) {
    const added = picturesIn({ output });
    if (!prompt || added.length === 0) return;
    const all = [...added, ...this.of(prompt)];
    this.#found.delete(prompt);
    this.#found.set(prompt, all);
    for (const oldest of [...this.#found.keys()].slice(0, -KEPT)) this.#found.delete(oldest);
  }

  /** The pictures of a prompt, the newest first. */
  of(/** @type {string} */ prompt) {
    return this.#found.get(prompt) ?? [];
  }
}

function bytes(/** @type {string} */ text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
