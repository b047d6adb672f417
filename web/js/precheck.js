// The prompt that only checks: what a guarded sampler would get, and MemGuard Check Prompt instead of the sampler.
// No DOM, no ComfyUI, so that node can test it.

import { isLink, samplerAt, samplersOf, upstream } from "./wiring.js";

const PREFIX = "memguard_check_";

/** The id of the node that checks for a guard; it tells the guard's id, also to a page that was reloaded meanwhile. */
export function checkId(guard) {
  return PREFIX + String(guard).replaceAll(":", "_");
}

/** The id of the guard that a check belongs to; null for other nodes. */
export function guardOf(id) {
  const text = String(id);
  return text.startsWith(PREFIX) ? text.slice(PREFIX.length).replaceAll("_", ":") : null;
}

/**
 * The reduced prompt of a guard: {output} in ComfyUI's API format.
 * Throws an Error with one line for the person where there is nothing to check.
 */
export function checkPrompt(prompt, guard) {
  const home = prompt[guard];
  if (!home) throw new Error("This MemGuard node is bypassed or muted; switch it on to check its prompt.");
  const samplers = samplersOf(prompt, guard);
  if (samplers.length === 0) throw new Error("No sampler gets this node's model; connect its model output to a sampler.");
  const ready = samplers.filter((sampler) => !continues(prompt, sampler));
  const first = ready.find((sampler) => !sampler.schedule) ?? ready[0];
  if (!first) throw new Error("The guarded sampler goes on with another sampler's latent; a check would have to sample.");
  const extra = {};
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

function continues(prompt, { late, latent }) {
  return late || [...upstream(prompt, latent[0])].some((id) => samplerAt(prompt, id) !== null);
}

// guiders without a negative prompt (Flux): what the guard itself would compare with
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
function partOfSchedule({ schedule, model }, guard, extra) {
  if (!schedule) return null;
  const id = `${checkId(guard)}_sigmas`;
  extra[id] = { class_type: "BasicScheduler", inputs: { model, ...schedule } };
  return [id, 0];
}
