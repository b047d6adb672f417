// The button "Check prompt": queues a prompt that only checks, made of what a guarded sampler would get and MemGuard Check
// Prompt instead of the sampler, and says how that went.
// @ts-check
/** @import { Badge } from "./badge.js" */
/** @import { Link, Prompt, Sampler } from "./types.js" */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { executionIdOf } from "./graph.js";
import { isLink, samplerAt, samplersOf, upstream } from "./wiring.js";

const PREFIX = "memguard_check_";
/** @type {Map<string, Badge>} */
const queued = new Map(); // prompt id -> the badge that waits for it

/** Score the prompt of a node's sampler without sampling; the badge says what happens until the report comes. */
export async function check(/** @type {ComfyUI.Node} */ node, /** @type {Badge} */ badge) {
  try {
    const { output, workflow } = await app.graphToPrompt();
    const reduced = checkPrompt(output, executionIdOf(app.rootGraph ?? app.graph, node) ?? "");
    badge.say("Prompt check is queued …");
    const answer = await api.queuePrompt(0, { output: reduced, workflow });
    if (answer.prompt_id) queued.set(answer.prompt_id, badge);
    else badge.say(`The server refused the check: ${firstOf(answer.node_errors)}`);
  } catch (error) {
    badge.say(reasonOf(error));
  }
}

/** Hear of checks that end without a report. */
export function listenToChecks() {
  api.addEventListener("execution_error", ({ detail }) => end(detail.prompt_id, `No check: ${detail.exception_message}`));
  api.addEventListener("execution_interrupted", ({ detail }) => end(detail.prompt_id, "The check was interrupted."));
  api.addEventListener("execution_success", ({ detail }) => queued.delete(detail.prompt_id)); // its report said all
}

function end(/** @type {string} */ prompt, /** @type {string} */ line) {
  queued.get(prompt)?.say(line.split("\n")[0]);
  queued.delete(prompt);
}

// a rejected prompt carries its reasons per node; our own errors are one line already
function reasonOf(/** @type {any} */ error) {
  const { response } = error;
  if (!response) return error.message;
  return `The server refused the check: ${firstOf(response.node_errors) ?? response.error?.message ?? error.message}`;
}

function firstOf(/** @type {ComfyUI.NodeErrors | undefined} */ nodeErrors) {
  const [first] = Object.values(nodeErrors ?? {}).flatMap(({ errors, class_type: type }) =>
    errors.map(({ message, details }) => `${type}: ${message} (${details})`),
  );
  return first;
}

/** The id of the node that checks for a guard; it tells the guard's id, also to a page that was reloaded meanwhile. */
export function checkId(/** @type {string} */ guard) {
  return PREFIX + guard.replaceAll(":", "_");
}

/** The id of the guard that a check belongs to; null for other nodes. */
export function guardOf(/** @type {string | number} */ id) {
  const text = String(id);
  return text.startsWith(PREFIX) ? text.slice(PREFIX.length).replaceAll("_", ":") : null;
}

/**
 * The reduced prompt of a guard.
 * Throws an Error with one line for the person where there is nothing to check.
 * @returns {Prompt}
 */
export function checkPrompt(/** @type {Prompt} */ prompt, /** @type {string} */ guard) {
  const home = prompt[guard];
  if (!home) throw new Error("This MemGuard node is bypassed or muted; switch it on to check its prompt.");
  const samplers = samplersOf(prompt, guard);
  if (samplers.length === 0) throw new Error("No sampler gets this node's model; connect its model output to a sampler.");
  const ready = samplers.filter((sampler) => !continues(prompt, sampler));
  const first = ready.find((sampler) => !sampler.schedule) ?? ready[0];
  if (!first) throw new Error("The guarded sampler goes on with another sampler's latent; a check would have to sample.");
  /** @type {Prompt} */
  const extra = {};
  /** @type {Record<string, unknown>} */
  const inputs = {
    model: first.model,
    positive: first.positive,
    negative: first.negative ?? emptyPrompt(prompt, guard, first, extra),
    latent: first.latent,
    seed: first.seed,
    seeds: 1,
    policy: "observe", // nothing runs that could be stopped, and the badge is being looked at
    sensitivity: home.inputs.sensitivity,
  };
  if (isLink(prompt, home.inputs.profile)) inputs.profile = home.inputs.profile;
  const sigmas = first.sigmas ?? partOfSchedule(first, guard, extra);
  if (sigmas) inputs.sigmas = sigmas;
  const all = { ...prompt, ...extra, [checkId(guard)]: { class_type: "MemGuard_CheckPrompt", inputs } };
  const needed = upstream(all, checkId(guard));
  return Object.fromEntries(Object.entries(all).filter(([id]) => needed.has(id)));
}

function continues(/** @type {Prompt} */ prompt, /** @type {Sampler} */ { late, latent }) {
  return late || [...upstream(prompt, latent[0])].some((id) => samplerAt(prompt, id) !== null);
}

/**
 * Of guiders without a negative prompt (Flux): what the guard itself would compare with.
 * @param {Prompt} prompt
 * @param {string} guard
 * @param {Sampler} sampler
 * @param {Prompt} extra what the prompt needs beside
 * @returns {Link}
 */
function emptyPrompt(prompt, guard, sampler, extra) {
  const { empty } = prompt[guard].inputs;
  if (isLink(prompt, empty)) return empty;
  const encoder = [...upstream(prompt, sampler.positive[0])].find((id) => isLink(prompt, prompt[id].inputs.clip));
  if (!encoder) throw new Error("The sampler has no negative prompt; connect the empty prompt to MemGuard's input empty.");
  const id = `${checkId(guard)}_empty`;
  extra[id] = { class_type: "CLIPTextEncode", inputs: { clip: prompt[encoder].inputs.clip, text: "" } };
  return [id, 0];
}

// a sampler that starts from a picture starts at a lower noise level
function partOfSchedule(/** @type {Sampler} */ { schedule, model }, /** @type {string} */ guard, /** @type {Prompt} */ extra) {
  if (!schedule) return null;
  const id = `${checkId(guard)}_sigmas`;
  extra[id] = { class_type: "BasicScheduler", inputs: { model, ...schedule } };
  return [id, 0];
}
