"""The words of a prompt and the file of a checkpoint, found by walking the graph that is being executed.

The sampler itself knows only tensors.

Part of the ComfyUI host; may import: the standard library.
"""

from __future__ import annotations

import re
from typing import Any

# how samplers and guiders call the inputs that lead to a prompt
INPUTS = {
    "positive": ("positive", "conditioning", "cond1"),
    "negative": ("negative",),
}
TEXTS = ("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "value", "string")
FILES = ("ckpt_name", "unet_name", "model_name")  # how loaders call the widget with the model's file
WAYS = ("model", "base_model", "guider", "pipe", "basic_pipe", "context", "base_ctx")  # inputs that lead to a loader
PAINTED = re.compile(r"latent|sample|image|pixel|segs", re.IGNORECASE)  # inputs that lead to a picture before this one
DEPTH = 24

Graph = dict[str, dict[str, Any]]


def prompt_text(graph: Graph, node_id: str | None, role: str) -> str | None:
    """Return the text of a sampler's positive or negative prompt; several texts are joined by " | "."""
    found = prompt_texts(graph, node_id, role)
    return " | ".join(found) if found else None


def prompt_texts(graph: Graph, node_id: str | None, role: str) -> list[str]:
    """Return the texts of a node's positive or negative prompt, each once."""
    start = _start(graph, node_id, role, DEPTH)
    found: list[str] = []
    if start is not None:
        _collect(graph, start, role, found, set())
    return list(dict.fromkeys(found))


def guard(graph: Graph, node_id: str | None) -> str | None:
    """Return the id of the MemGuard node that a sampler's model comes through, the nearest one; None without one."""
    guider = _linked(_inputs(graph, node_id).get("guider"))
    here, seen = _linked(_inputs(graph, node_id).get("model")) or guider, set()
    while here is not None and here not in seen:
        if graph.get(str(here), {}).get("class_type") == "MemGuard":
            return str(here)
        seen.add(here)
        here = _linked(_inputs(graph, here).get("model"))
    return None


def painted_before(graph: Graph, node_id: str | None) -> set[str]:
    """Return the nodes that a sampler's latent, or a detailer's picture, comes from; samplers before it among them."""
    inputs = _inputs(graph, node_id)
    waiting = [_linked(value) for name, value in inputs.items() if PAINTED.search(name)]
    found: set[str] = set()
    while waiting:
        source = waiting.pop()
        if source is None or str(source) in found:
            continue
        found.add(str(source))
        waiting += [_linked(value) for value in _inputs(graph, source).values()]
    return found


def sampler_name(graph: Graph, node_id: str | None) -> str | None:
    """Return the sampler's name as the node, or the node that it gets its sampler from, shows it."""
    inputs = _inputs(graph, node_id)
    name = inputs.get("sampler_name") or _inputs(graph, _linked(inputs.get("sampler"))).get("sampler_name")
    return name if isinstance(name, str) else None


def checkpoint(graph: Graph, node_id: str | None) -> str | None:
    """Return the model file that a sampler's model was loaded from; of merged ones the first."""
    waiting, seen = [str(node_id)], set[str]()
    while waiting and len(seen) < DEPTH:
        node = waiting.pop(0)
        if node in seen:
            continue
        seen.add(node)
        inputs = _inputs(graph, node)
        for widget in FILES:
            if name := _string(graph, inputs.get(widget)):
                return name
        links = {name: str(source) for name, value in inputs.items() if (source := _linked(value)) is not None}
        # a switch or a reroute calls its inputs as it likes
        ways = [source for name, source in links.items() if name.startswith(WAYS)] or list(links.values())
        waiting = ways + waiting
    return None


def _string(graph: Graph, value: Any) -> str | None:
    """Return a widget's string, also where a node such as a primitive gives it."""
    if (source := _linked(value)) is not None:
        inputs = _inputs(graph, source)
        value = next((inputs[name] for name in (*FILES, *TEXTS) if isinstance(inputs.get(name), str)), None)
    return value if isinstance(value, str) else None


def _inputs(graph: Graph, node_id: Any) -> dict[str, Any]:
    return graph.get(str(node_id), {}).get("inputs", {})


def _linked(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 2 else None


def _start(graph: Graph, node_id: Any, role: str, depth: int) -> Any:
    """Return the node that a sampler's prompt comes from; a sampler with a guider has it one node further."""
    inputs = _inputs(graph, node_id)
    for name in INPUTS[role]:
        if (source := _linked(inputs.get(name))) is not None:
            return source
    guider = _linked(inputs.get("guider"))
    return _start(graph, guider, role, depth - 1) if guider is not None and depth else None


def _collect(graph: Graph, node_id: Any, role: str, found: list[str], seen: set[str]) -> None:
    if str(node_id) in seen or len(seen) > DEPTH:
        return
    seen.add(str(node_id))
    inputs = _inputs(graph, node_id)
    texts = [inputs[name] for name in TEXTS if name in inputs]
    if texts:
        for text in texts:
            if isinstance(text, str):
                found.append(text)
            elif (source := _linked(text)) is not None:
                _collect(graph, source, role, found, seen)
        return
    # a node such as ControlNetApplyAdvanced carries both prompts; follow the one of this role
    names = [name for name in INPUTS[role] if name in inputs] or list(inputs)
    for name in names:
        if name in ("model", "clip", "vae", "control_net", "image"):
            continue
        if (source := _linked(inputs[name])) is not None:
            _collect(graph, source, role, found, seen)
