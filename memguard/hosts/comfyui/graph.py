"""What a run's nodes tell of it: its checkpoint, its guard, its sampler, and what was painted before it.

Found by walking the graph that is being executed. Part of the ComfyUI host.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from . import texts
from .links import Graph, inputs_of, kind_of, linked

FILES = ("ckpt_name", "unet_name", "model_name")  # how loaders call the widget with the model's file
WAYS = ("model", "base_model", "guider", "pipe", "basic_pipe", "context", "base_ctx")  # inputs that lead to a loader
CHOICES = ("switch", "select", "index")  # how a switch calls the widget that says which of its inputs goes on
PAINTED = re.compile(r"latent|sample|image|pixel|segs", re.IGNORECASE)  # inputs that lead to a picture before this one


def prompt_texts(graph: Graph, node_id: str | None, role: str, index: int | None = None) -> list[str]:
    """Return the texts that may stand behind a sampler's positive or negative prompt; ``texts`` tells more."""
    return list(texts.of(graph, node_id, role, index).found)


def guard(graph: Graph, node_id: str | None) -> str | None:
    """Return the id of the MemGuard node that a sampler's model comes through, the nearest one; None without one."""
    found = (node for node in _upstream(graph, node_id) if kind_of(graph, node) == "MemGuard")
    return next(found, None)


def painted_before(graph: Graph, node_id: str | None, empty: bool = False) -> set[str]:
    """Return the nodes that a sampler's latent, or a detailer's picture, comes from; samplers before it among them.

    Args:
        graph: that is executed.
        node_id: the sampler.
        empty: whether its latent is zeros; then what gives that only its size is no picture before it.

    """
    inputs = inputs_of(graph, node_id)
    waiting = [linked(value) for name, value in inputs.items() if PAINTED.search(name)]
    found: set[str] = set()
    while waiting:
        source = waiting.pop()
        if source is None or str(source) in found:
            continue
        found.add(str(source))
        more = inputs_of(graph, source).items()
        waiting += [linked(value) for name, value in more if not empty or PAINTED.search(name)]
    return found


def unguarded_after(graph: Graph, node_id: str | None) -> list[str]:
    """Return the samplers that go on from a sampler's picture with a model that no MemGuard node watches."""
    found = []
    for other, node in graph.items():
        inputs = node.get("inputs", {})
        samples = any(linked(inputs.get(name)) for name in ("model", "guider")) and "sampler" in str(sorted(inputs))
        if samples and node_id in painted_before(graph, other) and guard(graph, other) is None:
            found.append(other)
    return found


def sampler_name(graph: Graph, node_id: str | None) -> str | None:
    """Return the sampler's name as the node, or the node that it gets its sampler from, shows it."""
    inputs = inputs_of(graph, node_id)
    name = inputs.get("sampler_name") or inputs_of(graph, linked(inputs.get("sampler"))).get("sampler_name")
    return name if isinstance(name, str) else None


def checkpoint(graph: Graph, node_id: str | None) -> str | None:
    """Return the model file that a sampler's model was loaded from; of merged ones the first."""
    for node in _upstream(graph, node_id):
        inputs = inputs_of(graph, node)
        for widget in FILES:
            if name := _string(graph, inputs.get(widget)):
                return name
    return None


def _upstream(graph: Graph, node_id: str | None) -> Iterator[str]:
    """Yield a node and those that its model comes through, the nearest first."""
    waiting, seen = [str(node_id)], set[str]()
    while waiting:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        yield node
        waiting = _ways(inputs_of(graph, node)) + waiting


def _ways(inputs: dict[str, Any]) -> list[str]:
    """Return the nodes that a node's model may come from: one, unless it is a switch whose choice is not known."""
    links = {name: str(source) for name, value in inputs.items() if (source := linked(value))}
    for way in WAYS:
        # a merge is the first model with weights of the others, so what watches those does not watch it
        if named := sorted(name for name in links if name.startswith(way)):
            return [links[named[0]]]
    for choice in (inputs[name] for name in CHOICES if isinstance(inputs.get(name), bool | int)):
        ending = f"on_{choice}".lower() if isinstance(choice, bool) else str(choice)
        if chosen := [source for name, source in links.items() if re.search(rf"(?<!\d){ending}$", name)]:
            return chosen
    return list(links.values())  # a switch or a reroute calls its inputs as it likes


def _string(graph: Graph, value: Any) -> str | None:
    """Return a widget's string, also where a node such as a primitive gives it."""
    if (source := linked(value)) is not None:
        inputs = inputs_of(graph, source)
        value = next((inputs[name] for name in (*FILES, *texts.TEXTS) if isinstance(inputs.get(name), str)), None)
    return value if isinstance(value, str) else None
