"""Edits inside a UNet's cross-attention, bound at the last moment: in an APPLY_MODEL wrapper of the call itself.

By then every other node has had its say, so existing replacements (IPAdapter) and overrides (other backends) are there
to be called with the edited queries, keys and values, and what is put in belongs to one call's own options: nothing has
to be taken out again. Which rows carry the prompt comes from the lists that CALC_COND_BATCH was given, never from their
order.

Part of the ComfyUI host; may import: comfy, torch, memguard.mitigations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import comfy.ldm.modules.attention as attention
import comfy.model_management
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...mitigations.edit import OTHER, Edit, Plan
from . import roles
from .attention import Unreadable, cross_paths, eager, is_compiled
from .calls import Cond

KEY = "memguard_edits"
PATH = re.compile(r"(input|middle|output)_blocks?\.(\d+)\.(?:\d+\.)?transformer_blocks\.(\d+)\.attn2$")
PLAIN = "the network ran as it is and not as compiled, so that the edits of its attention act"
LEFT = "cross-attention was left alone in {} layers: another node changes its rows or columns"

Table = Callable[[Cond], "Tensor | None"]  # what stands in the columns of a conditioning, int8 [1, tokens]


class Editor:
    """Lets the model calls of one guider follow edits.

    Args:
        guider: of the run; its network is known once it samples.
        table: tells the tokens of a conditioning.
        note: takes what the user must know.

    """

    def __init__(self, guider: Any, table: Table, note: Callable[[str], None]) -> None:
        self.guider, self.table, self.note = guider, table, note
        self.left: set[str] = set()  # layers whose rows or columns are not the call's own
        self._layers: dict[tuple[str, int, int], str] | None = None
        self._conds: Sequence[Any] = ()
        self._images = 0

    @property
    def layers(self) -> dict[tuple[str, int, int], str]:
        """The layers by the place that ComfyUI gives them: block, its number, and the transformer in it."""
        if self._layers is None:
            try:
                self._layers = {_place(path): name for name, path in cross_paths(self.guider.inner_model).items()}
            except Unreadable:
                self._layers = {}
        return self._layers

    @property
    def widths(self) -> dict[str, int]:
        """The number of value neurons of each layer; empty without cross-attention."""
        if not self.layers:
            return {}
        network = self.guider.inner_model
        unet = getattr(network.diffusion_model, "_orig_mod", network.diffusion_model)
        found = {name: unet.get_submodule(path) for name, path in cross_paths(network).items()}
        return {name: int(layer.to_v.weight.shape[0]) for name, layer in found.items()}

    def expect(self, conds: Sequence[Any], images: int) -> None:
        """Take what CALC_COND_BATCH is about to evaluate: the conditionings of each role, and the rows of each."""
        self._conds, self._images = conds, images

    def options(self, options: dict[str, Any], edits: Sequence[Edit], step: int, sigma: float) -> dict[str, Any]:
        """Return model_options for a call under edits; those of an editor around this one act first."""
        if not edits:
            return options
        if is_compiled(options):
            self.note(PLAIN)
        found = eager(options)
        transformer = found["transformer_options"]
        transformer[KEY] = (*transformer.get(KEY, ()), (self, tuple(edits), step, sigma))
        transformer["wrappers"][WrappersMP.APPLY_MODEL][KEY] = [_apply]
        return found

    def rows(self, options: dict[str, Any], rows: int, columns: int) -> tuple[Tensor, Tensor | None] | None:
        """Return which rows of a call carry the prompt, bool [rows], and what stands in each column, if known.

        None where the call has other rows than it was asked for, as when another node cuts pictures into tiles.
        """
        chunks = list(zip(options.get("cond_or_uncond", ()), options.get("uuids", ()), strict=False))
        if not chunks or rows != len(chunks) * self._images:
            return None
        conditional = torch.zeros(len(chunks), dtype=torch.bool)
        groups = torch.full((len(chunks), columns), OTHER, dtype=torch.int8)
        known = False
        for number, (index, uuid) in enumerate(chunks):
            conds = self._conds[index] if index < len(self._conds) else None
            if conds is None or roles.role_of(conds, self.guider) != roles.PROMPT:
                continue
            conditional[number] = True
            part = next((cond for cond in conds if cond.get("uuid") == uuid), None)
            table = None if part is None else self.table(part)
            if table is not None and columns % table.shape[1] == 0:  # ComfyUI repeats prompts to a common length
                groups[number], known = table.repeat(1, columns // table.shape[1])[0], True
        images = self._images
        return conditional.repeat_interleave(images), groups.repeat_interleave(images, 0) if known else None


def _place(path: str) -> tuple[str, int, int]:
    found = PATH.match(path)
    assert found is not None, path
    block, number, transformer = found.groups()
    return block, 0 if block == "middle" else int(number), int(transformer)


def _apply(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Make one call of the network under the edits that its options name."""
    named = "transformer_options" in kwargs
    options = kwargs["transformer_options"] if named else args[4]
    text = kwargs["c_crossattn"] if "c_crossattn" in kwargs else args[2]
    followed = _Followed.of(options, len(x), None if text is None else text.shape[1], x.device)
    if followed is None:
        return executor(x, *args, **kwargs)
    changed = followed.options(options)
    with _as_written(executor.class_obj):
        if named:
            return executor(x, *args, **{**kwargs, "transformer_options": changed})
        return executor(x, *args[:4], changed, *args[5:], **kwargs)


def _as_written(network: Any) -> AbstractContextManager[Any]:
    """Let a network that another node compiled for good run as it is written: its graph would not follow edits."""
    if hasattr(network.diffusion_model, "_orig_mod") and hasattr(torch.compiler, "set_stance"):
        return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]
    return nullcontext()


class _Followed:
    """The edits of one call of the network."""

    def __init__(self, plan: Plan, editor: Editor) -> None:
        self.plan, self.editor = plan, editor
        self._theirs: Any = None  # the override of another node
        self._now: str | None = None  # the layer whose attention comes next
        self._chunks: dict[int, list[int]] = {}

    @classmethod
    def of(cls, options: dict[str, Any], rows: int, columns: int | None, device: torch.device) -> _Followed | None:
        """Return what a call is to follow; None where its rows cannot be told."""
        asked = options[KEY]
        editor, _, step, sigma = asked[-1]
        if columns is None:
            return None
        found = [each.rows(options, rows, columns) for each, *_ in asked]
        known = [each for each in found if each is not None]
        if not known:
            editor.note("edits were left out of calls whose rows another node changes")
            return None
        conditional = known[-1][0]
        if not bool(conditional.any()):
            return None
        groups = next((table for _, table in known if table is not None), None)
        edits = [edit for _, own, *_ in asked for edit in own]
        table = None if groups is None else groups.to(device)
        return cls(Plan(edits, conditional.to(device), table, step, sigma), editor)

    def options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return a call's own transformer_options with the edits in them."""
        patches = dict(options.get("patches", {}))
        # the last of these patches is called right before the attention of its layer
        patches["attn2_patch"] = [*patches.get("attn2_patch", ()), self._mark]
        replaced = dict(options.get("patches_replace", {}))
        replaced["attn2"] = {key: partial(self._replaced, theirs) for key, theirs in replaced.get("attn2", {}).items()}
        self._theirs = options.get("optimized_attention_override")
        more = {"patches": patches, "patches_replace": replaced, "optimized_attention_override": self._override}
        return {**options, **more}

    def _mark(self, x: Tensor, context: Tensor, value: Tensor, extra: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        block = extra.get("block") or ("", 0)
        self._now = self.editor.layers.get((block[0], block[1], extra.get("block_index", 0)))
        return x, context, value

    def _layer(self, k: Tensor, odd: bool = False) -> str | None:
        """Return the layer that was marked, if it is to be edited."""
        layer, self._now = self._now, None
        if layer is None or not any(edit.acts(layer) or self.plan.cuts for edit in self.plan.edits):
            return None
        if odd or not self.plan.fits(k):
            self.editor.left.add(layer)
            return None
        return layer

    def _override(self, func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, *rest: Any, **named: Any) -> Any:
        theirs = func if self._theirs is None else partial(self._theirs, func)
        odd = bool(rest) or named.get("mask") is not None or named.get("skip_reshape", False)
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
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # of ours, or of the attention itself, which then fails once more
            if torch.is_grad_enabled():
                raise
            self.editor.note(f"the edit of {layer} failed: {type(error).__name__}: {error}")
            return plain()

    def _part(self, options: dict[str, Any], rows: Tensor | None) -> dict[str, Any]:
        """Return a call's options for some of its rows, which are always whole conditionings."""
        chunks = options.get("cond_or_uncond")
        if rows is None or not chunks:
            return options
        images = len(self.plan.conditional) // len(chunks)
        if id(rows) not in self._chunks:
            self._chunks[id(rows)] = sorted({row // images for row in rows.tolist()})
        kept = self._chunks[id(rows)]
        here = {name: [options[name][i] for i in kept] for name in ("cond_or_uncond", "uuids") if name in options}
        return {**options, **here}
