// Which node a report belongs to. The event names the node that measured: a sampler, whose guard sits upstream of its
// model, or Check Prompt itself.

export const GUARD = "MemGuard";
export const CHECK = "MemGuard_CheckPrompt";
const CARRIERS = new Set(["MODEL", "GUIDER", "*"]); // "*" is a reroute's

/** The nodes that show the report: the nearest upstream of where it was measured, or the only guard there is. */
export function homesOf(rootGraph, executionId) {
  const origin = find(rootGraph, String(executionId).split(":"));
  const found = origin ? nearest(origin) : [];
  if (found.length > 0) return found;
  // a link that leaves a subgraph is not followed
  const guards = nodesOf(rootGraph).filter((node) => node.comfyClass === GUARD);
  return guards.length === 1 ? guards : [];
}

/** The guard whose handle a Report node has. */
export function guardsAt(node) {
  const handles = (node.inputs ?? []).map((input, slot) => (input.type === "MEMGUARD" ? node.getInputNode(slot) : null));
  return handles.filter((source) => source?.comfyClass === GUARD);
}

// "12:3" is node 3 inside the subgraph that node 12 stands for
function find(graph, [id, ...rest]) {
  const node = graph?.getNodeById(isNaN(id) ? id : Number(id));
  return rest.length > 0 ? find(node?.subgraph, rest) : node;
}

function nodesOf(graph) {
  return graph.nodes.flatMap((node) => (node.subgraph ? [node, ...nodesOf(node.subgraph)] : [node]));
}

function nearest(origin) {
  const seen = new Set();
  let front = [origin];
  while (front.length > 0) {
    const homes = front.filter((node) => node.comfyClass === GUARD || node.comfyClass === CHECK);
    if (homes.length > 0) return homes;
    front.forEach((node) => seen.add(node));
    front = front.flatMap(sources).filter((node) => !seen.has(node));
  }
  return [];
}

function sources(node) {
  const slots = (node.inputs ?? []).map((input, slot) => (CARRIERS.has(input.type) ? node.getInputNode(slot) : null));
  return slots.filter(Boolean);
}
