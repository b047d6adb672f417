// The open workflow as a prompt, over nodes as LiteGraph has them. That the real page agrees is tests/e2e's.

import assert from "node:assert/strict";
import { test } from "node:test";
import { everyNode, executionIdOf, nodeAt, plainPrompt } from "../../web/js/graph.js";

const MUTED = 2;
const BYPASSED = 4;

class LGraphNode {
  constructor(id, comfyClass, facts = {}) {
    Object.assign(this, { id, comfyClass, mode: 0, inputs: [], widgets: [], ...facts });
  }

  getInputLink(slot) {
    return this.inputs[slot]?.link ?? null;
  }
}

/** A subgraph's node answers for the node inside that an input leads to: not what is asked for. */
class SubgraphNode extends LGraphNode {
  isSubgraphNode() {
    return true;
  }

  getInputLink() {
    throw new Error("the wrong method");
  }

  resolveSubgraphOutputLink(slot) {
    return { outputNode: this.subgraph.nodes[0], link: { origin_slot: slot } };
  }
}

const input = (name, type, origin = null, slot = 0, facts = {}) => ({
  name,
  type,
  link: origin === null ? null : { origin_id: origin, origin_slot: slot, ...facts },
});

function graphOf(...nodes) {
  const graph = { id: "g", nodes, getNodeById: (id) => nodes.find((node) => node.id === id) };
  for (const node of nodes) node.graph = graph;
  return graph;
}

const loader = (facts) => new LGraphNode(1, "CheckpointLoaderSimple", { widgets: [{ name: "ckpt_name", value: "a" }], ...facts });
const lora = (mode) => new LGraphNode(2, "LoraLoader", { mode, inputs: [input("clip", "CLIP"), input("model", "MODEL", 1)] });
const guard = (origin) => new LGraphNode(3, "MemGuard", { inputs: [input("model", "MODEL", origin)] });
const modelOf = (graph) => plainPrompt(graph)[3].inputs.model;

test("widgets and links are inputs, and boxes for text are known", () => {
  const widgets = [
    { name: "text", type: "customtext", value: "a cup" },
    { name: "preview", value: "x", options: { serialize: false } },
  ];
  const text = new LGraphNode(4, "CLIPTextEncode", { widgets, inputs: [input("clip", "CLIP", 1, 1)] });
  assert.deepEqual(plainPrompt(graphOf(loader(), text))[4], {
    class_type: "CLIPTextEncode",
    inputs: { text: "a cup", clip: ["1", 1] },
    types: { clip: "CLIP" },
    boxes: ["text"],
  });
});

test("a bypassed node passes on what is of the same type, a muted one nothing", () => {
  assert.deepEqual(modelOf(graphOf(loader(), lora(0), guard(2))), ["2", 0]);
  assert.deepEqual(modelOf(graphOf(loader(), lora(BYPASSED), guard(2))), ["1", 0]);
  assert.equal(modelOf(graphOf(loader(), lora(MUTED), guard(2))), undefined);
  assert.deepEqual(Object.keys(plainPrompt(graphOf(loader({ mode: MUTED }), lora(BYPASSED), guard(2)))), ["3"]);
});

test("virtual nodes are gone through: reroutes by their input, primitives by their value", () => {
  const reroute = new LGraphNode(2, undefined, { isVirtualNode: true, inputs: [input("", "*", 1)] });
  assert.deepEqual(modelOf(graphOf(loader(), reroute, guard(2))), ["1", 0]);
  const primitive = new LGraphNode(2, undefined, { isVirtualNode: true, widgets: [{ name: "value", value: 7 }] });
  assert.equal(modelOf(graphOf(primitive, guard(2))), 7);
});

test("links in a circle end", () => {
  const two = [1, 2].map((id) => new LGraphNode(id, undefined, { isVirtualNode: true, inputs: [input("", "*", 3 - id)] }));
  assert.equal(modelOf(graphOf(...two, guard(1))), undefined);
});

test("a subgraph's nodes have the ids of the server, and links go in and out", () => {
  const inner = new LGraphNode(5, "ModelSampling", { inputs: [input("model", "MODEL", -10, 0, { originIsIoNode: true })] });
  const outer = new SubgraphNode(12, "uuid", { subgraph: graphOf(inner), inputs: [input("model", "MODEL", 1)] });
  const root = graphOf(loader(), outer, guard(12));
  const found = plainPrompt(root);
  assert.deepEqual(Object.keys(found).sort(), ["1", "12:5", "3"]);
  assert.deepEqual(found["12:5"].inputs.model, ["1", 0]);
  assert.deepEqual(found[3].inputs.model, ["12:5", 0]);
  assert.equal(nodeAt(root, "12:5"), inner);
  assert.equal(nodeAt(root, "13:5"), undefined);
  assert.equal(executionIdOf(root, inner), "12:5");
  assert.deepEqual(everyNode(root).map(({ id }) => id), [1, 12, 5, 3]);
});
