// What feeds what in a prompt: {id: {class_type, inputs}}, inputs being values or links [id, slot], as ComfyUI's API
// has it. Nodes are recognised by the names of their inputs, so that samplers of other packs count too. No DOM, no ComfyUI.
// @ts-check
/** @import { Link, PlainPrompt, Prompt, Sampler } from "./types.js" */

const MODEL = /^(\w+_)?model(_?\d+)?$/;
const CHECKPOINTS = ["ckpt_name", "unet_name"];
const TEXT_TYPES = new Set(["CONDITIONING", "STRING", "*"]);

/**
 * Whether an input is a link to another node of the prompt.
 * @returns {value is Link}
 */
export function isLink(/** @type {Prompt} */ prompt, /** @type {unknown} */ value) {
  return Array.isArray(value) && value.length === 2 && String(value[0]) in prompt;
}

/** The ids of a node and of everything that it needs. */
export function upstream(/** @type {Prompt} */ prompt, /** @type {string} */ id, /** @type {Set<string>} */ found = new Set()) {
  if (found.has(String(id))) return found;
  found.add(String(id));
  for (const value of Object.values(prompt[id].inputs)) if (isLink(prompt, value)) upstream(prompt, value[0], found);
  return found;
}

/** The samplers that get a guard's model. */
export function samplersOf(/** @type {Prompt} */ prompt, /** @type {string} */ guard) {
  const all = Object.keys(prompt).map((id) => samplerAt(prompt, id));
  return all.filter((found) => found !== null).filter(({ model }) => leadsTo(prompt, model, guard));
}

/** The ids of the guards that watch a sampler. */
export function guardsOf(/** @type {Prompt} */ prompt, /** @type {string | number} */ sampler) {
  const guards = Object.keys(prompt).filter((id) => prompt[id].class_type === "MemGuard");
  return guards.filter((guard) => samplersOf(prompt, guard).some(({ id }) => id === String(sampler)));
}

/** Names of the checkpoints that a guard watches, as their loaders' widgets have them. */
export function checkpointsOf(/** @type {Prompt} */ prompt, /** @type {string} */ guard) {
  /** @type {Set<string>} */
  const found = new Set();
  const { model } = prompt[guard].inputs;
  for (const id of isLink(prompt, model) ? upstream(prompt, model[0]) : []) {
    for (const name of CHECKPOINTS) {
      const value = prompt[id].inputs[name];
      if (typeof value === "string" && value) found.add(value);
    }
  }
  return [...found];
}

/**
 * The texts that a conditioning is made of: [{id, name, text}], one per text box. Needs what graph.js adds to a prompt:
 * `types` of the inputs and `boxes`, the names of those that are boxes for text.
 * @param {PlainPrompt} prompt
 * @param {unknown} link
 * @param {{ id: string, name: string, text: string }[]} found
 * @param {Set<string>} seen
 */
export function textsOf(prompt, link, found = [], seen = new Set()) {
  if (!isLink(prompt, link) || seen.has(String(link[0]))) return found;
  const id = String(link[0]);
  seen.add(id);
  const { inputs, types, boxes } = prompt[id];
  for (const name of boxes) if (typeof inputs[name] === "string") found.push({ id, name, text: inputs[name] });
  for (const [name, value] of Object.entries(inputs)) if (TEXT_TYPES.has(types[name])) textsOf(prompt, value, found, seen);
  return found;
}

/**
 * What a node samples from; null for a node that is no sampler.
 * @returns {Sampler | null}
 */
export function samplerAt(/** @type {Prompt} */ prompt, /** @type {string} */ id) {
  const { inputs } = prompt[id];
  const latent = inputs.latent_image ?? inputs.latent;
  const guider = isLink(prompt, inputs.guider) ? prompt[inputs.guider[0]].inputs : inputs;
  const positive = guider.positive ?? guider.conditioning ?? guider.cond1;
  const noise = isLink(prompt, inputs.noise) ? prompt[inputs.noise[0]].inputs : inputs;
  const seed = inputs.seed ?? inputs.noise_seed ?? noise.seed ?? noise.noise_seed;
  const drawsNoise = seed !== undefined || inputs.guider !== undefined;
  if (![latent, guider.model, positive].every((value) => isLink(prompt, value)) || !drawsNoise) return null;
  if (String(prompt[id].class_type ?? "").startsWith("MemGuard")) return null; // Check Prompt has a sampler's inputs
  return {
    id,
    model: guider.model,
    positive,
    negative: isLink(prompt, guider.negative) ? guider.negative : null,
    latent,
    seed: seed ?? 0,
    sigmas: isLink(prompt, inputs.sigmas) ? inputs.sigmas : null,
    schedule: inputs.denoise < 1 ? { scheduler: inputs.scheduler, steps: inputs.steps, denoise: inputs.denoise } : null,
    late: inputs.start_at_step > 0 || inputs.add_noise === "disable" || inputs.add_noise === false,
  };
}

/**
 * Whether a link comes from a guard, through nodes that change a model.
 * @param {Prompt} prompt
 * @param {unknown} link
 * @param {string} guard
 * @param {Set<string>} seen
 * @returns {boolean}
 */
function leadsTo(prompt, link, guard, seen = new Set()) {
  if (!isLink(prompt, link) || seen.has(String(link[0]))) return false;
  const id = String(link[0]);
  if (id === guard) return true;
  seen.add(id);
  const models = Object.entries(prompt[id].inputs).filter(([name]) => MODEL.test(name));
  return models.some(([, value]) => leadsTo(prompt, value, guard, seen));
}
