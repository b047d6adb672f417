"""The edits of one call of a network: what is put into its options, and what then happens in each layer.

Part of the ComfyUI host.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import comfy.ldm.modules.attention as attention
import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor

from ...mitigations.edit import OTHER, Part, Plan
from ...mitigations.effect import Effect
from ...troubles import careful, in_words

KEY = "memguard_edits"  # of what a call's options say of its edits
ROWS = "edits were left out of calls whose rows another node changes"

log = logging.getLogger("memguard")


class Edited(Protocol):
    """Whose edits are followed: an Editor."""

    left: set[str]
    planned: tuple[Any, Plan] | None

    @property
    def layers(self) -> Mapping[tuple[str, int, int], str]:
        """The layers by the place that ComfyUI gives them."""

    def note(self, line: str) -> None:
        """Take what the user must know."""

    def parts(self, options: dict[str, Any], rows: int) -> list[Any] | None:
        """Return the prompt's conditioning of each chunk of a call."""


class _Effects:
    """Tells each edit of a call to the treatment that it belongs to; edits are numbered through all treatments."""

    def __init__(self, told: Sequence[tuple[Effect | None, int]]) -> None:
        self._told = told

    def lacks(self, number: int) -> bool:
        effect, own = self._told[number]
        return effect is not None and effect.lacks(own)

    def edited(self, numbers: Sequence[int]) -> None:
        for effect, own in (self._told[number] for number in numbers):
            if effect is not None:
                effect.edited([own])


def left_out(options: dict[str, Any], error: Exception) -> None:
    """Note that the edits of a call were left out for an error of ours; a gradient must not be that of another call.

    Raises:
        Exception: the same error, where a gradient is taken.

    """
    _say(options[KEY][-1][0], "edits were left out of a call", error)


def _say(editor: Edited, what: str, error: Exception) -> None:
    if torch.is_grad_enabled():
        raise error
    log.warning("%s: %s", what, in_words(error), exc_info=error)
    editor.note(f"{what}, because of {in_words(error)}")


class Followed:
    """The edits of one call of the network."""

    def __init__(self, plan: Plan, editor: Edited) -> None:
        self.plan, self.editor = plan, editor
        self._theirs: Any = None  # the override of another node
        self._now: str | None = None  # the layer whose attention comes next
        self._chunks: dict[int, list[int]] = {}

    @classmethod
    def of(cls, options: dict[str, Any], rows: int, columns: int | None, device: torch.device) -> Followed | None:
        """Return what a call is to follow; None where its rows cannot be told."""
        asked = options[KEY]
        editor, _, step, sigma, _ = asked[-1]
        parts = editor.parts(options, rows)
        if parts is None or columns is None:
            editor.note(ROWS)
            return None
        if all(part is None for part in parts):
            return None
        edits = tuple(edit for _, own, *_ in asked for edit in own)
        told = [(effect, number) for _, own, _, _, effect in asked for number in range(len(own))]
        images = rows // len(parts)
        # a plan holds for all calls of its kind, and edits keep what they made for it; tensors that were made in
        # inference mode cannot be part of a gradient
        mode = torch.is_inference_mode_enabled()
        key = (edits, tuple("" if part is None else part.get("uuid") for part in parts), images, columns, device, mode)
        planned = editor.planned  # where calls are split over devices, another thread may put its own in the place
        if planned is None or planned[0] != key:
            tables = [next(filter(None, (each.row(part, columns) for each, *_ in asked)), None) for part in parts]
            conditional = torch.tensor([part is not None for part in parts], device=device).repeat_interleave(images)
            groups = None
            if any(tables):
                rest = [OTHER] * columns
                table = torch.tensor([row or rest for row in tables], dtype=torch.int8, device=device)
                groups = table.repeat_interleave(images, 0)
            planned = editor.planned = key, Plan(edits, conditional, groups)
        plan = planned[1]
        plan.step, plan.sigma = step, sigma
        plan.effect = _Effects(told) if any(effect is not None for effect, _ in told) else None
        return cls(plan, editor)

    def options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return a call's own transformer_options with the edits in them."""
        patches = dict(options.get("patches", {}))
        # the last of these patches is called right before the attention of its layer
        patches["attn2_patch"] = [*patches.get("attn2_patch", ()), self._mark]
        patches["attn2_output_patch"] = [self._past, *patches.get("attn2_output_patch", ())]
        replaced = dict(options.get("patches_replace", {}))
        replaced["attn2"] = {key: partial(self._replaced, theirs) for key, theirs in replaced.get("attn2", {}).items()}
        self._theirs = options.get("optimized_attention_override")
        more = {"patches": patches, "patches_replace": replaced, "optimized_attention_override": self._override}
        return {**options, **more}

    def _mark(self, x: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        self._now = None
        with self._careful():
            block = extra.get("block") or ("", 0)
            self._now = self.editor.layers.get((block[0], block[1], extra.get("block_index", 0)))
        return x, context, value

    def _past(self, out: Tensor, extra: dict[str, Any]) -> Tensor:
        with self._careful():
            if self._now is not None:  # another node computes this layer in a way of its own
                self.editor.left.add(self._now)
                self._now = None
        return out

    def _layer(self, k: Tensor, odd: bool = False) -> str | None:
        """Return the layer that was marked, if it is to be edited."""
        layer, self._now = self._now, None
        if layer is None or not any(edit.acts(layer) or self.plan.cuts for edit in self.plan.edits):
            return None
        if not odd and self.plan.fits(k):
            return layer
        self.editor.left.add(layer)
        return None

    def _careful(self) -> AbstractContextManager[None]:
        return careful(partial(_say, self.editor, "an edit was left out"), InterruptProcessingException)

    def _override(self, func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *rest: Any, **named: Any) -> Any:
        theirs = func if self._theirs is None else partial(self._theirs, func)
        odd = bool(rest) or named.get("mask") is not None or named.get("skip_reshape", False)
        layer = None
        with self._careful():
            layer = self._layer(k, odd)
        if layer is None:
            return theirs(q, k, v, heads, *rest, **named)

        def backend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rows: Any, columns: Any) -> Tensor:
            here = dict(named)
            if here.get("transformer_options") is not None:
                here["transformer_options"] = self._part(here["transformer_options"], rows)
            if bias is not None:
                here["mask"] = bias
            return theirs(q, k, v, heads, **here)

        return self._attend(layer, heads, q, k, v, backend, lambda: theirs(q, k, v, heads, **named))

    def _replaced(self, theirs: Any, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any], *rest: Any) -> Any:
        layer = None
        with self._careful():
            layer = self._layer(k, bool(rest))
        if layer is None:
            return theirs(q, k, v, extra, *rest)
        heads = int(extra["n_heads"])

        def backend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rows: Any, columns: Any) -> Tensor:
            out = theirs(q, k, v, self._part(extra, rows))
            if bias is None:
                return out
            # a replacement takes no bias; one that adds to the text's attention, as IPAdapter does, takes the change
            plain, biased = (
                attention.optimized_attention(q, k, v, heads, mask=mask, attn_precision=extra.get("attn_precision"))
                for mask in (None, bias)
            )
            return out + (biased - plain).to(out)

        return self._attend(layer, heads, q, k, v, backend, lambda: theirs(q, k, v, extra))

    def _attend(self, layer: str, heads: int, q: Tensor, k: Tensor, v: Tensor, backend: Any, plain: Any) -> Any:
        try:
            return self.plan.attend(layer, heads, (q.shape[-1] // heads) ** -0.5, q, k, v, backend)
        except InterruptProcessingException:
            raise
        except Exception as error:  # of ours, or of the attention itself, which then fails once more
            _say(self.editor, f"the edit of {layer} was left out", error)
            return plain()

    def _part(self, options: dict[str, Any], rows: Part | None) -> dict[str, Any]:
        """Return a call's options for some of its rows, which are always whole conditionings."""
        chunks = options.get("cond_or_uncond")
        if rows is None or not chunks:
            return options
        images = len(self.plan.conditional) // len(chunks)
        if id(rows) not in self._chunks:
            every = range(len(self.plan.conditional))
            these = every[rows] if isinstance(rows, slice) else rows.tolist()
            self._chunks[id(rows)] = sorted({row // images for row in these})
        kept = self._chunks[id(rows)]
        own = [name for name in ("cond_or_uncond", "uuids") if name in options]
        return options | {name: [options[name][i] for i in kept] for name in own}
