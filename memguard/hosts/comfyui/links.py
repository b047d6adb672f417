"""The graph that is being executed, as ComfyUI keeps it: nodes with values and with links to outputs of other nodes.

Part of the ComfyUI host.
"""

from __future__ import annotations

from typing import Any

Graph = dict[str, dict[str, Any]]
DEPTH = 24  # nodes on one way, at most


def inputs_of(graph: Graph, node_id: Any) -> dict[str, Any]:
    """Return the inputs of a node; none where there is no such node."""
    found = graph.get(str(node_id), {}).get("inputs", {})
    return found if isinstance(found, dict) else {}


def kind_of(graph: Graph, node_id: Any) -> str:
    """Return the class of a node."""
    return str(graph.get(str(node_id), {}).get("class_type", ""))


def link(value: Any) -> tuple[str, int] | None:
    """Return node and output that an input is linked to; None for a value, also one that is a list of two."""
    if not (isinstance(value, list) and len(value) == 2):
        return None
    node_id, slot = value
    number = isinstance(slot, int | float) and not isinstance(slot, bool)
    return (str(node_id), int(slot)) if isinstance(node_id, str | int) and number else None


def linked(value: Any) -> str | None:
    """Return the node that an input is linked to."""
    found = link(value)
    return None if found is None else found[0]
