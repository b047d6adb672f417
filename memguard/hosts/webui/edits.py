"""Edits inside cross-attention, whatever attention optimisation the WebUI uses.

For the time of the block each layer has a ``forward`` of its own. It projects, lets the plan edit, and calls the
layer's own forward while its projections give out the edited tensors, for the rows and columns that go together. Which
rows of a call carry the prompt is told by the host, right before the network is called.

Part of the WebUI hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ...mitigations.edit import OTHER, Edit, Plan, heads_last
from ...mitigations.effect import Effect
from .layers import cross_layers

# the plan of the network's call in progress; a context variable, as a backward pass may compute a block again
PLAN: ContextVar[Plan | None] = ContextVar("memguard_webui_plan", default=None)

Careful = Callable[[], AbstractContextManager[Any]]  # the guard around what stands in the host's own calls
Marks = Callable[[int, dict[str, Any]], Sequence[bool]]  # rows and named arguments of a call -> which carry the prompt


class Editor:
    """Stands in the way of a network's cross-attention.

    Args:
        network: the UNet.
        repeats: whether the host repeats a prompt to a common length (Forge), or appends to it (A1111).

    Attributes:
        table: what stands in each column of each image's prompt, int8 [B, tokens]; None where that is not known.
        left: what could not be edited, for the report.
        effect: is told which edits act; None for calls that are not the run's own.

    """

    def __init__(self, network: nn.Module, repeats: bool = False) -> None:
        self.network, self.layers, self.repeats = network, cross_layers(network), repeats
        self.table: Tensor | None = None
        self.edits: tuple[Edit, ...] = ()
        self.step, self.sigma = 0, 0.0
        self.left: dict[str, None] = {}
        self.effect: Effect | None = None
        self._careful: Careful = nullcontext
        self._marks: Marks | None = None
        self._planned: tuple[Any, Plan] | None = None
        self._tokens: list[Any] = []

    @property
    def widths(self) -> dict[str, int]:
        """The number of value neurons of each layer."""
        return {name: int(layer.to_v.weight.shape[0]) for name, layer in self.layers.items()}

    @contextmanager
    def installed(self, marks: Marks, careful: Careful = nullcontext) -> Iterator[None]:
        """Stand there for the time of the block, where there are edits.

        Args:
            marks: which rows of a call carry the prompt.
            careful: around what is done inside the network's calls; after an error it lets the call go on unedited.

        """
        before_careful, self._careful = self._careful, careful
        saved = [(layer, layer.__dict__.get("forward")) for layer in self.layers.values()]
        before, self._marks = self._marks, marks
        handles = [
            self.network.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.network.register_forward_hook(self._end, always_call=True),
        ]
        try:
            for name, layer in self.layers.items():
                layer.forward = partial(self._forward, name, layer, layer.forward)
            yield
        finally:
            self._marks, self._careful = before, before_careful
            for handle in handles:
                handle.remove()
            for layer, forward in saved:
                if forward is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.forward = forward

    @contextmanager
    def following(self, edits: tuple[Edit, ...], effect: Effect | None = None) -> Iterator[None]:
        """Follow other edits, on calls that hold the prompt's rows only; ``effect`` is told which act."""
        before, self.edits = self.edits, edits
        told, self.effect = self.effect, effect
        try:
            if not edits:
                yield
                return
            with self.installed(lambda rows, named: rows * [True]):
                yield
        finally:
            self.edits, self.effect = before, told

    def drop(self) -> None:
        """Edit nothing from here on, not even the rest of the call in progress."""
        self.edits = ()
        PLAN.set(None)

    def _begin(self, network: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._tokens.append(PLAN.set(None))
        text = named.get("context", args[2] if len(args) > 2 else None)
        if self.edits and self._marks is not None and isinstance(text, Tensor):
            with self._careful():
                PLAN.set(self._plan(self._marks(len(text), named), text))

    def _end(self, *_: Any) -> None:
        if self._tokens:  # none where the beginning failed
            PLAN.reset(self._tokens.pop())

    def _plan(self, marks: Sequence[bool], text: Tensor) -> Plan | None:
        rows, columns = len(text), text.shape[1]
        if len(marks) != rows or not any(marks):
            return None
        mode = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
        key = (self.edits, self.effect, tuple(marks), columns, text.device, mode)
        if self._planned is None or self._planned[0] != key:
            conditional = torch.tensor(marks, device=text.device)
            self._planned = key, Plan(self.edits, conditional, self._groups(conditional, columns), effect=self.effect)
        plan = self._planned[1]
        plan.step, plan.sigma = self.step, self.sigma
        return plan

    def _groups(self, conditional: Tensor, columns: int) -> Tensor | None:
        """Return what stands in each column of a call's rows."""
        chosen = int(conditional.sum())
        if self.table is None or chosen % len(self.table):
            return None
        own = self.table.shape[1]
        if columns < own or (self.repeats and columns % own):
            return None
        found = torch.full((len(conditional), columns), OTHER, dtype=torch.int8, device=conditional.device)
        table = self.table.to(conditional.device).repeat(chosen // len(self.table), 1)
        if self.repeats:
            found[conditional] = table.repeat(1, columns // own)
        else:
            found[conditional, :own] = table
        return found

    def _forward(self, name: str, layer: Any, forward: Any, x: Tensor, context: Any = None, **named: Any) -> Any:
        plan = PLAN.get()
        edited = plan is not None and isinstance(context, Tensor) and plan.fits(context)
        if plan is None or not edited or not any(edit.acts(name) or plan.cuts for edit in plan.edits):
            if plan is not None and not edited:
                self.left["cross-attention was left alone where another extension changes its rows or columns"] = None
            return forward(x, context, **named)
        with self._careful():
            return self._edited(name, layer, plan, forward, x, context, named)
        return forward(x, context, **named)  # an error of ours

    def _edited(
        self, name: str, layer: Any, plan: Plan, forward: Any, x: Tensor, context: Tensor, named: dict[str, Any]
    ) -> Any:
        value = named.get("value")
        q, k, v = layer.to_q(x), layer.to_k(context), layer.to_v(context if value is None else value)

        def backend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rows: Any, columns: Any) -> Any:
            if bias is not None:
                a, b, c = (heads_last(t, layer.heads).transpose(1, 2) for t in (q, k, v))
                return layer.to_out(scaled_dot_product_attention(a, b, c, attn_mask=bias).transpose(1, 2).flatten(2))
            own = x if rows is None else x[rows]
            words = context if rows is None else context[rows][:, columns]
            more = named if value is None else {**named, "value": words}
            with _giving(layer, q, k, v):
                return forward(own, words, **more)

        scale = (q.shape[-1] // layer.heads) ** -0.5
        return plan.attend(name, int(layer.heads), scale, q, k, v, backend)


@contextmanager
def _giving(layer: Any, *made: Tensor) -> Iterator[None]:
    """Let a layer's projections give out what was made already."""
    parts = (layer.to_q, layer.to_k, layer.to_v)
    saved = [part.__dict__.get("forward") for part in parts]
    try:
        for part, out in zip(parts, made, strict=True):
            part.forward = lambda *_, out=out: out
        yield
    finally:
        for part, forward in zip(parts, saved, strict=True):
            if forward is None:
                part.__dict__.pop("forward", None)
            else:
                part.forward = forward
