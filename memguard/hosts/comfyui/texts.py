"""The texts of a prompt, found by walking the graph that is being executed; the sampler itself knows only tensors.

A text counts as the prompt only where every node on the way is known to hand it through as it is. What a node computes
from it (replaced, cased, translated, mixed, one of a list) is not in the graph: such texts are candidates, of which
encoding them again may tell the one. Part of the ComfyUI host. ComfyUI's register of
nodes is used only if ComfyUI has loaded it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .links import DEPTH, Graph, inputs_of, kind_of, link, linked

# how samplers, guiders and nodes with both prompts call what belongs to one of them
SIDES = {
    "positive": ("positive", "conditioning", "cond1"),
    "negative": ("negative",),
}
TEXTS = ("text", "text_g", "text_l", "clip_l", "t5xxl", "prompt", "value", "string")
OTHERS = ("model", "clip", "vae", "control_net", "image", "latent", "latent_image")
PIPES = ("guider", "basic_pipe", "pipe", "context")  # inputs of samplers that carry both prompts
# in the name of an input or output
SIDE = re.compile(r"(?<![a-z])(positive|negative|pos(?![a-z])|neg(?![a-z]))", re.IGNORECASE)
CORE = re.compile(r"CLIPTextEncode|TextEncode|Conditioning")  # classes of ComfyUI that encode, or join what is encoded
JOINING = ("ConditioningCombine", "ConditioningConcat")  # of two conditionings both are the prompt
SHOWING = re.compile(r"primitive|reroute|show|display|preview", re.IGNORECASE)  # classes that hand a text on as it is
EMPTIED = ("ConditioningZeroOut",)
LISTS = ("CreateList",)  # nodes that make a list of their inputs, in this order
BOTH = " | "


@dataclass(frozen=True)
class Texts:
    """The texts behind a conditioning.

    Attributes:
        found: each once, in the order of the graph.
        sure: whether they are the prompt; else they are candidates.
        plain: whether ComfyUI's own nodes encode them, whose text is what they are given.

    """

    found: tuple[str, ...] = ()
    sure: bool = True
    plain: bool = True

    @property
    def prompt(self) -> str | None:
        """The prompt, several texts joined by " | "; None where it is not known."""
        return BOTH.join(self.found) if self.found and self.sure else None


def of(graph: Graph, node_id: str | None, role: str, index: int | None = None) -> Texts:
    """Return the texts of a sampler's positive or negative prompt.

    Args:
        graph: node id -> node.
        node_id: of the sampler.
        role: "positive" or "negative".
        index: of the call, where a node is called once for each entry of a list.

    """
    walk = _Walk(graph, index or 0)
    here: str | None = node_id
    for _ in range(DEPTH):
        inputs = inputs_of(graph, here)
        source = next((found for name in SIDES[role] if (found := link(inputs.get(name)))), None)
        if source is not None:
            walk.follow(source, role)
            break
        here = next((node for name in PIPES if (node := linked(inputs.get(name)))), None)
    return Texts(tuple(dict.fromkeys(walk.found)), walk.sure, walk.plain)


class _Walk:
    """One way from a sampler to its texts."""

    def __init__(self, graph: Graph, index: int) -> None:
        self.graph, self.index = graph, index
        self.found: list[str] = []
        self.sure = self.plain = True
        self._seen: set[tuple[str, int]] = set()

    def follow(self, source: tuple[str, int], role: str) -> None:
        """Follow a link to a conditioning."""
        node_id, slot = source
        if source in self._seen or len(self._seen) > DEPTH:
            return
        self._seen.add(source)
        kind, inputs = kind_of(self.graph, node_id), inputs_of(self.graph, node_id)
        if kind in EMPTIED:
            return
        role = _side_of(_output(kind, slot)) or role
        sides = {name: side for name in inputs if (side := _side_of(name))}
        named = False
        if sides:  # a node with both prompts; it may call the positive one just "prompt"
            wanted = role if role in sides.values() or role == "negative" else None
            inputs = {name: value for name, value in inputs.items() if sides.get(name) == wanted}
            named = wanted is not None
        conditionings = [found for name, value in inputs.items() if (found := link(value)) and self._leads(name, found)]
        written = [value for name, value in inputs.items() if self._is_text(name, value, named)]
        if written and not conditionings:
            self.plain &= CORE.match(kind) is not None
            for value in written:
                self._text(value)
            return
        if kind in LISTS:
            conditionings = _entry(conditionings, self.index)
        elif (len(conditionings) > 1 and kind not in JOINING) or _is_list(kind, slot):
            self.sure = False  # a switch, a mix, one of a list
        for each in conditionings:
            self.follow(each, role)

    def _leads(self, name: str, source: tuple[str, int]) -> bool:
        """Whether an input leads to a conditioning; where its source is not known, its name decides."""
        known = _type(self.graph, source)
        if known is not None and known != "*":
            return known == "CONDITIONING"
        return name not in OTHERS and name not in TEXTS

    def _is_text(self, name: str, value: Any, named: bool) -> bool:
        """Whether an input is a text; one that is named by its side may be called as it likes."""
        source = link(value)
        if source is not None and _type(self.graph, source) not in ("STRING", "*", None):
            return False
        return name in TEXTS or (named and (isinstance(value, str) or _type(self.graph, source) == "STRING"))

    def _text(self, value: Any) -> None:
        """Take a text, or follow a link to one."""
        for _ in range(DEPTH):
            if isinstance(value, str):
                self.found.append(value)
                return
            source = link(value)
            if source is None:
                return
            kind, inputs = kind_of(self.graph, source[0]), inputs_of(self.graph, source[0])
            values = list(inputs.values())
            if kind in LISTS:
                values = _entry(values, self.index)
            box = len(values) == 1 and isinstance(values[0], str) and not _is_list(kind, source[1])
            if kind not in LISTS and not box and not (len(values) == 1 and SHOWING.search(kind)):
                self.sure = False  # what has more inputs than a text, or a text of other nodes, does something with it
                self.found += _strings(self.graph, inputs)
                return
            value = values[0] if values else None


def _entry(values: list[Any], index: int) -> list[Any]:
    """Return the entry of a list that a call gets; ComfyUI repeats the last one of a shorter list."""
    return values[min(index, len(values) - 1) :][:1]


def _strings(graph: Graph, inputs: dict[str, Any]) -> Iterator[str]:
    """Return the texts among the inputs of a node that computes another one from them."""
    for name in (name for name in inputs if name.startswith(TEXTS) or name.endswith(TEXTS)):
        if isinstance(inputs[name], str):
            yield inputs[name]
        elif source := linked(inputs[name]):
            yield from (v for k, v in inputs_of(graph, source).items() if k in TEXTS and isinstance(v, str))


def _class(kind: str) -> Any:
    return getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(kind)


def _is_list(kind: str, slot: int) -> bool:
    """Whether what a node puts out is a list, each entry of which is a call of the next node."""
    flags = getattr(_class(kind), "OUTPUT_IS_LIST", None) or ()
    return slot < len(flags) and bool(flags[slot])


def _type(graph: Graph, source: tuple[str, int] | None) -> str | None:
    """Return the type of the output that a link comes from, where the node is known."""
    if source is None:
        return None
    types = getattr(_class(kind_of(graph, source[0])), "RETURN_TYPES", ())
    return str(types[source[1]]) if source[1] < len(types) else None


def _output(kind: str, slot: int) -> str:
    """Return the name of one of several conditionings that a node puts out; of unknown nodes the usual order."""
    cls = _class(kind)
    if cls is None:
        return ""
    types = tuple(map(str, cls.RETURN_TYPES))
    names = tuple(getattr(cls, "RETURN_NAMES", None) or types)
    if types.count("CONDITIONING") < 2 or slot >= len(names):
        return ""
    return str(names[slot])


def _side_of(name: str) -> str | None:
    mark = SIDE.search(name)
    if mark:
        return "positive" if mark[1].lower().startswith("pos") else "negative"
    return {"+": "positive", "-": "negative"}.get(name[-1:])
