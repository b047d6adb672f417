"""Edits inside cross-attention: the pipeline's own processors compute with edited queries, keys and values.

For the time of the block each cross-attention layer has a ``forward`` of its own. It projects, lets the plan edit, and
calls the layer's processor as it is (any backend, LoRA, IP-Adapter) on a stand-in for the layer whose projections give
out the edited tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...mitigations.edit import Plan
from .attention import cross_layers
from .edited import Edited
from .hooks import Trouble
from .rows import OWN
from .structure import compiled

# The plan that layers follow now. A context variable: a backward pass that computes a block again finds the plan of its
# forward pass (memguard.attributions.lean).
PLAN: ContextVar[Plan | None] = ContextVar("memguard_plan", default=None)


@contextmanager
def following(plan: Plan | None) -> Iterator[None]:
    """Let layers with an editor follow a plan for the time of the block."""
    token = PLAN.set(plan)
    try:
        yield
    finally:
        PLAN.reset(token)


def _none() -> AbstractContextManager[None]:
    return following(None)


class Editor:
    """Stands in the way of a denoiser's cross-attention layers.

    Args:
        module: the denoiser.
        trouble: of the run; a layer that cannot be edited there computes as it is.

    """

    def __init__(self, module: nn.Module, trouble: Trouble | None = None) -> None:
        self.module, self.trouble = module, trouble or Trouble()
        plain = getattr(module, "_orig_mod", module)
        self.layers = cross_layers(plain)
        self.edited = (
            None
            if self.layers or any(map(compiled, plain.children()))
            else Edited(plain, PLAN.get, _none, self.trouble)
        )
        self._known: dict[str, frozenset[str]] = {}  # what the processors know besides text and mask

    @property
    def widths(self) -> dict[str, int]:
        """The number of value neurons of each layer."""
        if self.edited is not None:
            return self.edited.widths
        return {name: int(layer.to_v.out_features) for name, layer in self.layers.items()}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand there for the time of the block."""
        if self.edited is not None:
            with self.edited.installed():
                yield
            return
        saved = [(layer, layer.__dict__.get("forward")) for layer in self.layers.values()]
        self._known.clear()
        try:
            for name, layer in self.layers.items():
                layer.forward = partial(self._forward, name, layer, layer.forward)
            yield
        finally:
            for layer, forward in saved:
                if forward is None:
                    layer.__dict__.pop("forward", None)
                else:
                    layer.forward = forward

    def _forward(self, name: str, layer: Any, forward: Any, *args: Any, **kwargs: Any) -> Any:
        plan = PLAN.get()
        if plan is None:
            return forward(*args, **kwargs)
        if OWN.get():  # an attempt: what goes wrong is told of the attempt
            made = self._edited(plan, name, layer, *args, **kwargs)
        else:
            made = self.trouble(partial(self._edited, plan, name, layer, *args, **kwargs))
        return forward(*args, **kwargs) if made is None else made

    def _edited(
        self,
        plan: Plan,
        name: str,
        layer: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return what a layer gives out under a plan; None if the plan does not act on it."""
        text = encoder_hidden_states[0] if isinstance(encoder_hidden_states, tuple) else encoder_hidden_states
        edited = text is not None and plan.fits(text)
        if not edited or not any(edit.acts(name) or plan.cuts for edit in plan.edits):
            return None
        if name not in self._known:
            self._known[name] = frozenset(inspect.signature(layer.processor.__call__).parameters)
        given = {key: value for key, value in kwargs.items() if key in self._known[name]}
        normed = layer.norm_encoder_hidden_states(text) if layer.norm_cross else text
        q, k, v = layer.to_q(hidden_states), layer.to_k(normed), layer.to_v(normed)

        def backend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rows: Any, columns: Any) -> Tensor:
            own, words, mask = hidden_states, encoder_hidden_states, attention_mask
            if rows is not None:
                own, words = own[rows], _part(words, rows, columns)
                mask = mask if mask is None else mask[rows][..., columns]
            if bias is not None:
                mask = _mask(layer, bias, mask)
            stand_in = _StandIn(layer, q, k, v)
            return layer.processor(stand_in, own, encoder_hidden_states=words, attention_mask=mask, **given)

        return plan.attend(name, int(layer.heads), float(layer.scale), q, k, v, backend)


class _StandIn:
    """A layer whose projections were made already."""

    def __init__(self, layer: Any, q: Tensor, k: Tensor, v: Tensor) -> None:
        self._layer = layer
        self.to_q, self.to_k, self.to_v = (lambda *_, out=out: out for out in (q, k, v))
        self.to_kv = lambda *_: torch.cat([k, v], -1)  # of fused projections

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)


def _part(words: Any, rows: Any, columns: Any) -> Any:
    """Return rows and columns of an encoded prompt; pictures as prompts, beside it in a pair, keep all columns."""
    if isinstance(words, tuple):
        text, pictures = words
        return text[rows][:, columns], [picture[rows] for picture in pictures]
    return words[rows][:, columns]


def _mask(layer: Any, bias: Tensor, mask: Tensor | None) -> Tensor:
    """Return a bias [B, heads, positions, tokens] as processors take it, together with the pipeline's own mask."""
    rows, heads = bias.shape[:2]
    whole = bias.expand(rows, int(layer.heads), -1, -1).flatten(0, 1)
    return whole if mask is None else whole + mask.repeat_interleave(heads, 0).to(whole)
