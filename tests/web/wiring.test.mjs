// What feeds what in a prompt.

import assert from "node:assert/strict";
import { test } from "node:test";
import { checkpointsOf, guardsOf, samplersOf, textsOf } from "../../web/js/wiring.js";
import { node, plain } from "./prompts.mjs";

test("the guards of a sampler are found", () => {
  const prompt = { ...plain(), 20: node("MemGuard", { model: ["1", 0] }) };
  assert.deepEqual(guardsOf(prompt, 7), ["3"]);
  assert.deepEqual(guardsOf(prompt, "8"), []);
});

test("the checkpoint is the one before the guard", () => {
  const prompt = { ...plain(), 20: node("UNETLoader", { unet_name: "other.safetensors" }) };
  assert.deepEqual(checkpointsOf(prompt, "3"), ["a.safetensors"]);
});

/** What graph.js adds: the types of links, and which inputs are boxes for text. */
function typed(prompt, boxes) {
  const links = { positive: "CONDITIONING", conditioning_1: "CONDITIONING", conditioning_2: "CONDITIONING" };
  const types = { ...links, text: "STRING", string_a: "STRING", image: "IMAGE", clip: "CLIP", model: "MODEL" };
  const typesOf = (inputs) => Object.fromEntries(Object.keys(inputs).map((name) => [name, types[name] ?? "INT"]));
  const read = ([id, value]) => [id, { ...value, types: typesOf(value.inputs), boxes: boxes[id] ?? [] }];
  return Object.fromEntries(Object.entries(prompt).map(read));
}

test("texts are found through conditioning and strings and not through pictures", () => {
  const prompt = {
    ...plain(),
    4: node("CLIPTextEncode", { clip: ["2", 1], text: ["13", 0] }),
    12: node("ConditioningCombine", { conditioning_1: ["14", 0], conditioning_2: ["15", 0] }),
    13: node("StringConcatenate", { string_a: ["16", 0], string_b: "of tea" }),
    14: node("ConditioningSetArea", { conditioning_1: ["4", 0], width: 8 }),
    15: node("ControlNetApplyAdvanced", { positive: ["17", 0], image: ["18", 0] }),
    16: node("PrimitiveStringMultiline", { value: "a cup" }),
    17: node("CLIPTextEncode", { clip: ["2", 1], text: "a tree" }),
    18: node("MakesAPicture", { text: "another model's prompt" }),
  };
  const boxes = { 4: ["text"], 16: ["value"], 17: ["text"], 18: ["text"] };
  assert.deepEqual(textsOf(typed(prompt, boxes), ["12", 0]), [
    { id: "16", name: "value", text: "a cup" },
    { id: "17", name: "text", text: "a tree" },
  ]);
});

test("a sampler of a missing pack ends nothing", () => {
  const prompt = { ...plain(), 9: { inputs: plain()[7].inputs } }; // ComfyUI knows no class of it
  assert.deepEqual(samplersOf(prompt, "3").map(({ id }) => id), ["7", "9"]);
});
