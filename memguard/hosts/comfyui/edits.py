"""Edits inside a UNet's cross-attention, bound at the last moment: in an APPLY_MODEL wrapper of the call itself.

By then every other node has had its say, so existing replacements (IPAdapter) and overrides (other backends) are there
to be called with the edited queries, keys and values, and what is put in belongs to one call's own options: nothing has
to be taken out again. Which rows carry the prompt comes from the lists that CALC_COND_BATCH was given, never from their
order.

Part of the ComfyUI host.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from comfy.model_management import InterruptProcessingException
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...mitigations.edit import Edit, Plan
from ...mitigations.effect import Effect
from ...troubles import careful
from . import roles
from .attention import Unreadable, cross_paths
from .calls import Cond, eager, is_compiled
from .following import KEY, Followed, left_out

PATH = re.compile(r"(input|middle|output)_blocks?\.(\d+)\.(?:\d+\.)?transformer_blocks\.(\d+)\.attn2$")
PLAIN = "the network ran as it is and not as compiled, so that the edits of its attention act"
LEFT = "cross-attention was left alone in {} layers: another node, or the model itself, changes its rows or columns"

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
        self.planned: tuple[Any, Plan] | None = None  # the last plan, and what it was made for

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

    def options(
        self, options: dict[str, Any], edits: Sequence[Edit], step: int, sigma: float, effect: Effect | None = None
    ) -> dict[str, Any]:
        """Return model_options for a call under edits; those of an editor around this one act first.

        Args:
            options: of the call.
            edits: to be followed.
            step: index of the call.
            sigma: its noise level.
            effect: is told what the edits change; None where the call is not the run's own.

        """
        if not edits:
            return options
        if is_compiled(options):
            self.note(PLAIN)
        found = eager(options)
        transformer = found["transformer_options"]
        transformer[KEY] = (*transformer.get(KEY, ()), (self, tuple(edits), step, sigma, effect))
        transformer["wrappers"][WrappersMP.APPLY_MODEL][KEY] = [_apply]
        return found

    def parts(self, options: dict[str, Any], rows: int) -> list[Cond | None] | None:
        """Return the prompt's conditioning of each chunk of a call, None for other roles, an empty one if not known.

        None where the call has other rows than it was asked for, as when another node cuts pictures into tiles.
        """
        chunks = list(zip(options.get("cond_or_uncond", ()), options.get("uuids", ()), strict=False))
        if not chunks or rows != len(chunks) * self._images:
            return None
        found: list[Cond | None] = []
        for index, uuid in chunks:
            conds = self._conds[index] if index < len(self._conds) else None
            if conds is None or roles.role_of(conds, self.guider) != roles.PROMPT:
                found.append(None)
            else:
                found.append(next((cond for cond in conds if cond.get("uuid") == uuid), {}))
        return found

    def row(self, part: Cond | None, columns: int) -> list[int] | None:
        """Return what stands in each column of a conditioning, repeated to a length as ComfyUI does; None: unknown."""
        table = self.table(part) if part else None
        if table is None or columns % table.shape[1]:
            return None
        return list(table[0].tolist()) * (columns // table.shape[1])


def _place(path: str) -> tuple[str, int, int]:
    found = PATH.match(path)
    assert found is not None, path
    block, number, transformer = found.groups()
    return block, 0 if block == "middle" else int(number), int(transformer)


def _apply(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Make one call of the network under the edits that its options name."""
    named = "transformer_options" in kwargs
    options = kwargs["transformer_options"] if named else args[4]
    text = kwargs.get("c_crossattn", args[2] if len(args) > 2 else None)
    changed = options
    written: AbstractContextManager[Any] = nullcontext()
    with careful(partial(left_out, options), InterruptProcessingException):
        followed = Followed.of(options, len(x), None if text is None else text.shape[1], x.device)
        written = _as_written(executor.class_obj)
        changed = options if followed is None else followed.options(options)
    if changed is options:
        return executor(x, *args, **kwargs)
    with written:
        if named:
            return executor(x, *args, **{**kwargs, "transformer_options": changed})
        return executor(x, *args[:4], changed, *args[5:], **kwargs)


def _as_written(network: Any) -> AbstractContextManager[Any]:
    """Let a network that another node compiled for good run as it is written: its graph would not follow edits."""
    if hasattr(network.diffusion_model, "_orig_mod") and hasattr(torch.compiler, "set_stance"):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
