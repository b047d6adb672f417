// The reduced prompt that only checks, and what is said when it is queued.

import assert from "node:assert/strict";
import { test } from "node:test";
import { check, checkId, checkPrompt, guardOf, listenToChecks } from "../../web/js/check.js";
import { api, app } from "./comfyui.mjs";
import { guided, node, plain } from "./prompts.mjs";

const CHECK = "memguard_check_3";
const checked = (prompt) => checkPrompt(prompt, "3");
const inputsOf = (prompt) => checked(prompt)[CHECK].inputs;

test("the reduced prompt has what the sampler gets and no sampler", () => {
  const found = checked(plain());
  assert.deepEqual(Object.keys(found).sort(), ["1", "2", "3", "4", "5", "6", CHECK]);
  assert.deepEqual(
    found[CHECK],
    node("MemGuard_CheckPrompt", {
      model: ["3", 0],
      positive: ["4", 0],
      negative: ["5", 0],
      latent: ["6", 0],
      seed: 11,
      seeds: 1,
      policy: "observe",
      sensitivity: 97.7,
    }),
  );
});

test("the other nodes stay as they are, so that they come from the cache", () => {
  const { [CHECK]: check, ...others } = checked(plain());
  for (const [id, value] of Object.entries(others)) assert.deepEqual(value, plain()[id]);
});

test("a seed that comes from a node stays a link", () => {
  const found = checked({ ...plain({ seed: ["12", 0] }), 12: node("PrimitiveInt", { value: 3 }) });
  assert.deepEqual(found[CHECK].inputs.seed, ["12", 0]);
  assert.ok("12" in found);
});

test("a sampler behind other model nodes is found", () => {
  const prompt = { ...plain({ model: ["12", 0] }), 12: node("ModelSamplingSD3", { model: ["3", 0], shift: 3 }) };
  assert.deepEqual(inputsOf(prompt).model, ["12", 0]);
});

test("a profile of the guard is used", () => {
  const prompt = { ...plain(), 12: node("MemGuard_LoadProfile", { name: "p" }) };
  prompt[3].inputs.profile = ["12", 0];
  assert.deepEqual(inputsOf(prompt).profile, ["12", 0]);
});

test("a guider says what its sampler gets", () => {
  const { positive, negative, seed, sigmas } = inputsOf(guided("CFGGuider", { positive: ["4", 0], negative: ["5", 0], cfg: 4 }));
  assert.deepEqual([positive, negative, seed, sigmas], [["4", 0], ["5", 0], 5, ["11", 0]]);
});

test("a guider without negative is compared with the empty prompt", () => {
  const found = checked(guided("BasicGuider", { conditioning: ["4", 0] }));
  const [empty] = found[CHECK].inputs.negative;
  assert.deepEqual(found[empty], node("CLIPTextEncode", { clip: ["2", 1], text: "" }));
});

test("the guard's own empty prompt comes first", () => {
  const prompt = guided("BasicGuider", { conditioning: ["4", 0] });
  prompt[3].inputs.empty = ["5", 0];
  assert.deepEqual(inputsOf(prompt).negative, ["5", 0]);
});

test("a run that starts from a picture is checked at its own noise", () => {
  const found = checked(plain({ denoise: 0.6 }));
  const [sigmas] = found[CHECK].inputs.sigmas;
  assert.deepEqual(found[sigmas], node("BasicScheduler", { model: ["3", 0], scheduler: "normal", steps: 20, denoise: 0.6 }));
});

test("the first of two passes is checked", () => {
  const prompt = {
    ...plain({ denoise: 0.5, latent_image: ["13", 0] }),
    12: plain({ seed: 99 })[7],
    13: node("LatentUpscale", { samples: ["12", 0] }),
  };
  const found = checked(prompt);
  assert.equal(found[CHECK].inputs.seed, 99);
  for (const id of ["7", "12", "13"]) assert.ok(!(id in found));
});

test("a guard of the second pass alone says that it would have to sample", () => {
  const prompt = { ...plain({ latent_image: ["12", 0] }), 12: plain({ model: ["2", 0] })[7] };
  assert.throws(() => checked(prompt), /a check would have to sample/);
});

test("without a sampler it says so", () => {
  assert.throws(() => checked(plain({ model: ["2", 0] })), /No sampler gets this node's model; connect its model output/);
});

test("a bypassed guard says so", () => assert.throws(() => checkPrompt(plain(), "77"), /bypassed or muted/));

for (const guard of ["3", "12:3"]) {
  test(`the check knows its guard: ${guard}`, () => {
    assert.equal(guardOf(checkId(guard)), guard);
    assert.equal(guardOf(guard), null);
  });
}

/** What the badge says of a check of a prompt, where the server's answer is that of `queue`. */
async function saidOf(prompt, queue) {
  const said = [];
  const node = { id: 3 };
  app.graph = { nodes: [node] };
  node.graph = app.graph;
  app.graphToPrompt = async () => ({ output: prompt, workflow: {} });
  api.queuePrompt = queue;
  await check(node, { say: (line) => said.push(line) });
  return said;
}

test("a check says that it is queued, and how it ended", async () => {
  listenToChecks();
  const said = await saidOf(plain(), async () => ({ prompt_id: "p" }));
  const failed = (id) => api.dispatchEvent(new CustomEvent("execution_error", { detail: { prompt_id: id, exception_message: "no\nroom" } }));
  failed("of another prompt");
  assert.deepEqual(said, ["Prompt check is queued …"]);
  failed("p");
  failed("p");
  assert.deepEqual(said.slice(1), ["No check: no"]);
});

test("a refused check says which node was refused and why", async () => {
  const errors = [{ message: "Value not in list", details: "ckpt_name" }];
  const response = { node_errors: { 1: { class_type: "CheckpointLoaderSimple", errors } } };
  const line = "The server refused the check: CheckpointLoaderSimple: Value not in list (ckpt_name)";
  assert.equal((await saidOf(plain(), async () => Promise.reject(Object.assign(new Error("400"), { response })))).at(-1), line);
  assert.equal((await saidOf(plain(), async () => response)).at(-1), line);
});

test("what cannot be checked is said in one line", async () => {
  assert.match((await saidOf(plain({ model: ["2", 0] }), null)).join("|"), /^No sampler gets this node's model[^|]*$/);
});
