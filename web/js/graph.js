// The open workflow: its nodes by the server's names ("12:3" is node 3 inside the subgraph that node 12 stands for), and
// all of it as a prompt, read and not run: app.graphToPrompt asks widgets to serialize themselves, and some of them upload
// a picture or draw a number for that. Same ids and links; also knows the inputs' types and the text boxes.
// No DOM: LiteGraph's nodes are only read, in the two generations of its API that frontends have.
// @ts-check
/** @import { Link, PlainNode, PlainPrompt } from "./types.js" */

/** @typedef {{ graph: ComfyUI.Graph, path: number[], outer: Inside | null }} Place a graph, and where it stands */
/** @typedef {{ place: Place, node: ComfyUI.Node }} Inside the node that stands for a subgraph */
/** @typedef {{ link: Link } | { value: unknown } | undefined} Source of an input; undefined where nothing is connected */
/** @typedef {Set<string>} Seen inputs that were gone through */

const MUTED = 2;
const BYPASSED = 4;

/** {id: {class_type, inputs, types, boxes}}; `boxes` are the names of inputs that are boxes for text of several lines. */
export function plainPrompt(/** @type {ComfyUI.Graph} */ root) {
  /** @type {PlainPrompt} */
  const found = {};
  collect({ graph: root, path: [], outer: null }, found);
  return found;
}

function collect(/** @type {Place} */ place, /** @type {PlainPrompt} */ found) {
  for (const node of place.graph.nodes) {
    if (node.mode === MUTED || node.mode === BYPASSED) continue;
    if (node.isSubgraphNode?.()) collect(inside(place, node), found);
    else if (!node.isVirtualNode) found[idOf(place, node)] = read(place, node);
  }
}

/** @returns {PlainNode} */
function read(/** @type {Place} */ place, /** @type {ComfyUI.Node} */ node) {
  /** @type {Record<string, unknown>} */
  const inputs = {};
  const boxes = [];
  for (const widget of node.widgets ?? []) {
    if (!widget.name || widget.options?.serialize === false) continue;
    inputs[widget.name] = widget.value;
    if (widget.type === "customtext") boxes.push(widget.name);
  }
  /** @type {Record<string, string>} */
  const types = {};
  (node.inputs ?? []).forEach((input, slot) => {
    types[input.name] = String(input.type);
    const source = sourceOf(place, node, slot, input.type, new Set());
    if (source) inputs[input.name] = "value" in source ? source.value : source.link;
  });
  return { class_type: node.comfyClass ?? String(node.type ?? ""), inputs, types, boxes };
}

/**
 * What an input is connected to.
 * @param {Place} place
 * @param {ComfyUI.Node} node
 * @param {number} slot
 * @param {unknown} type
 * @param {Seen} seen
 * @returns {Source}
 */
function sourceOf(place, node, slot, type, seen) {
  const key = `${idOf(place, node)}/${slot}`;
  const link = seen.has(key) ? null : linkInto(node, slot);
  if (!link) return undefined;
  seen.add(key);
  if (link.originIsIoNode && place.outer) return entering(place.outer, link.origin_slot, type, seen);
  const origin = place.graph.getNodeById(link.origin_id);
  return origin ? outputOf(place, origin, link.origin_slot, type, seen) : undefined;
}

/**
 * By LGraphNode's own method: subgraph nodes and virtual nodes answer with a link of their output side.
 * @returns {ComfyUI.Link | null | undefined}
 */
function linkInto(/** @type {ComfyUI.Node} */ node, /** @type {number} */ slot) {
  let method = node.getInputLink;
  for (let kind = Object.getPrototypeOf(node); kind; kind = Object.getPrototypeOf(kind)) {
    if (Object.hasOwn(kind, "getInputLink")) method = kind.getInputLink;
  }
  return method?.call(node, slot);
}

/** @type {(inside: Inside, slot: number, type: unknown, seen: Seen) => Source} */
function entering({ place, node }, slot, type, seen) {
  const source = sourceOf(place, node, slot, type, seen);
  if (source) return source;
  const name = node.inputs?.[slot]?.widget?.name ?? node.inputs?.[slot]?.name;
  const widget = node.widgets?.find((other) => other.name === name); // a widget that the subgraph shows outside
  return widget ? { value: widget.value } : undefined;
}

/** @type {(place: Place, node: ComfyUI.Node, slot: number, type: unknown, seen: Seen) => Source} */
function outputOf(place, node, slot, type, seen) {
  if (node.mode === MUTED) return undefined;
  if (node.mode === BYPASSED) {
    const through = (node.inputs ?? []).findIndex((input) => input.type === type);
    return through < 0 ? undefined : sourceOf(place, node, through, type, seen);
  }
  if (node.isSubgraphNode?.()) {
    const found = node.resolveSubgraphOutputLink?.(slot);
    return found?.outputNode && outputOf(inside(place, node), found.outputNode, found.link.origin_slot, type, seen);
  }
  if (node.isVirtualNode) return throughVirtual(place, node, slot, type, seen);
  return { link: [idOf(place, node), slot] };
}

// reroutes have an input; primitive nodes a widget; get nodes know the link of their set node
/** @type {(place: Place, node: ComfyUI.Node, slot: number, type: unknown, seen: Seen) => Source} */
function throughVirtual(place, node, slot, type, seen) {
  if (node.inputs?.[slot]) return sourceOf(place, node, slot, type, seen);
  const link = node.getInputLink?.(slot);
  const origin = link && place.graph.getNodeById(link.origin_id);
  if (origin) return outputOf(place, origin, link.origin_slot, type, seen);
  return node.widgets?.length ? { value: node.widgets[0].value } : undefined;
}

/** @returns {Place} */
function inside(/** @type {Place} */ place, /** @type {ComfyUI.Node} */ node) {
  return { graph: /** @type {ComfyUI.Graph} */ (node.subgraph), path: [...place.path, node.id], outer: { place, node } };
}

function idOf(/** @type {Place} */ place, /** @type {ComfyUI.Node} */ node) {
  return [...place.path, node.id].join(":");
}

/** The node of that id in the open workflow; undefined where another workflow is open. */
export function nodeAt(/** @type {ComfyUI.Graph} */ rootGraph, /** @type {string | number} */ executionId) {
  return find(rootGraph, String(executionId).split(":"));
}

/** The id by which the server knows a node; of a subgraph that is used twice, the first place. */
export function executionIdOf(/** @type {ComfyUI.Graph} */ rootGraph, /** @type {ComfyUI.Node} */ node) {
  return path(rootGraph, node)?.join(":");
}

/**
 * All nodes of a workflow, those in its subgraphs too.
 * @returns {ComfyUI.Node[]}
 */
export function everyNode(/** @type {ComfyUI.Graph} */ graph) {
  return graph.nodes.flatMap((node) => [node, ...(node.subgraph ? everyNode(node.subgraph) : [])]);
}

/** @type {(graph: ComfyUI.Graph | undefined, ids: string[]) => ComfyUI.Node | null | undefined} */
function find(graph, [id, ...rest]) {
  const node = graph?.getNodeById(isNaN(Number(id)) ? id : Number(id));
  return rest.length > 0 ? find(node?.subgraph, rest) : node;
}

/** @type {(graph: ComfyUI.Graph, node: ComfyUI.Node) => number[] | undefined} */
function path(graph, node) {
  if (node.graph === graph) return [node.id];
  for (const outer of graph.nodes) {
    const inner = outer.subgraph && path(outer.subgraph, node);
    if (inner) return [outer.id, ...inner];
  }
  return undefined;
}
