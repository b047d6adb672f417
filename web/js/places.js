// Where a report is shown. The server names the node: "12:3" is node 3 inside the subgraph that node 12 stands for.

/** The node of that id in the open workflow; undefined where another workflow is open. */
export function nodeAt(rootGraph, executionId) {
  return find(rootGraph, String(executionId).split(":"));
}

/** The id by which the server knows a node; of a subgraph that is used twice, the first place. */
export function executionIdOf(rootGraph, node) {
  return path(rootGraph, node)?.join(":");
}

/** All nodes of a workflow, those in its subgraphs too. */
export function everyNode(graph) {
  return graph.nodes.flatMap((node) => [node, ...(node.subgraph ? everyNode(node.subgraph) : [])]);
}

function find(graph, [id, ...rest]) {
  const node = graph?.getNodeById(isNaN(id) ? id : Number(id));
  return rest.length > 0 ? find(node?.subgraph, rest) : node;
}

function path(graph, node) {
  if (node.graph === graph) return [node.id];
  for (const outer of graph.nodes) {
    const inner = outer.subgraph && path(outer.subgraph, node);
    if (inner) return [outer.id, ...inner];
  }
  return undefined;
}
