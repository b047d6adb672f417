// Where a report is shown. The server names the node: "12:3" is node 3 inside the subgraph that node 12 stands for.

/** The node of that id in the open workflow; undefined where another workflow is open. */
export function nodeAt(rootGraph, executionId) {
  return find(rootGraph, String(executionId).split(":"));
}

function find(graph, [id, ...rest]) {
  const node = graph?.getNodeById(isNaN(id) ? id : Number(id));
  return rest.length > 0 ? find(node?.subgraph, rest) : node;
}
