"""Cross-attention of a UNet, read beside the model's own calls: nothing that the model computes is replaced.

Queries and keys are what the projections of the attn2 layers give out, so any attention backend, override or
replacement (IPAdapter) may work with them. Hooks are on the network only for the call that is read, and that call's own
APPLY_MODEL wrapper tells which rows carry which prompt.

Part of the ComfyUI host.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import comfy.utils
from comfy.model_management import InterruptProcessingException
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...attributions import attention
from ...attributions.maps import MapTally
from ...troubles import Told, careful, in_words
from .calls import Cond, eager, text_of

KEY = "memguard_attention"
PROJECTION = ".attn2.to_q.weight"
ROWS = "attention was not read: another node changes the rows or the size of the model's calls"
# networks whose attention over prompt and picture is one; of others MemGuard does not know it
JOINT = frozenset({"Flux", "OpenAISignatureMMDITWrapper", "MMDiT"})
Careful = Callable[[], AbstractContextManager[None]]

log = logging.getLogger("memguard")


class Unreadable(Told):
    """Why the attention of a model cannot be read, in words for the user."""


class AttentionReader:
    """Reads the attention of one role's conditionings, call by call.

    Rows and sizes are those of the evaluation that was announced, or the call is not read: another node may cut
    pictures into tiles and stack them. Within a call, layers whose rows another node changes are left out.

    Args:
        network: the model that ComfyUI's guider holds (``inner_model``).
        with_maps: whether to keep maps as well; they take the most memory.
        careful: the guard around each hook; None keeps an error's words as ``reason``.

    Attributes:
        masses: of the last call: part -> layer -> mass [B, tokens].
        tallies: part -> its maps of all calls that were read.
        places: part -> (height, width, y, x) of its area in the latent; missing where it covers everything.
        reason: why the last call has no masses.
        left: layers that could not be read in some call.

    Raises:
        Unreadable: if the model's attention is not known, or it is compiled for good.

    """

    def __init__(self, network: Any, with_maps: bool = False, careful: Careful | None = None) -> None:
        self.layers = cross_layers(network)
        self.with_maps = with_maps
        self.masses: dict[int, dict[str, Tensor]] = {}
        self.tallies: dict[int, MapTally] = {}
        self.places: dict[int, tuple[int, ...]] = {}
        self.reason = ""
        self.left: set[str] = set()
        self._careful = careful
        self._conds: Sequence[Cond] = ()
        self._rows: frozenset[int] = frozenset()
        self._x: Tensor | None = None

    def expect(self, conds: Sequence[Cond], indices: Sequence[int], x: Tensor | None = None) -> None:
        """Say what the next call evaluates: the prompt's conditionings, where they stand among all roles, and latents.

        Until latents are given nothing is read.
        """
        self._conds, self._rows, self._x = conds, frozenset(indices), x
        self.masses, self.reason = {}, ""

    def options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return model_options for a call that is read: with our wrapper, and without a compiled network."""
        found = eager(options)
        found["transformer_options"]["wrappers"][WrappersMP.APPLY_MODEL][KEY] = [self._apply]
        return found

    def _apply(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        q: dict[str, Tensor] = {}
        k: dict[str, Tensor] = {}
        handles: list[Any] = []
        try:
            with self._guarded():
                self._hook(executor.class_obj, q, k, handles)
            out = executor(x, *args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        with self._guarded():
            self._sort(x, kwargs.get("transformer_options") or (args[4] if len(args) > 4 else {}), q, k)
        return out

    def _guarded(self) -> AbstractContextManager[None]:
        return careful(self._failed, InterruptProcessingException) if self._careful is None else self._careful()

    def _failed(self, error: Exception) -> None:
        self.reason = in_words(error)
        if not isinstance(error, Told):
            log.warning("attention: %s: %s", type(error).__name__, error, exc_info=error)

    def _sort(self, x: Tensor, options: dict[str, Any], q: dict[str, Tensor], k: dict[str, Tensor]) -> None:
        if self._x is None or not self._rows:
            return
        chunks = list(zip(options.get("cond_or_uncond", ()), options.get("uuids", ()), strict=False))
        images = len(self._x)
        for number, (index, uuid) in enumerate(chunks):
            part = next((i for i, cond in enumerate(self._conds) if cond.get("uuid") == uuid), None)
            # what is evaluated again are perturbed passes (PAG, SAG)
            if index not in self._rows or part is None or part in self.masses:
                continue
            size = _size(self._conds[part], self._x)
            if len(x) != len(chunks) * images or tuple(x.shape[-2:]) != size:
                self.reason = ROWS
                return
            rows = slice(number * images, (number + 1) * images)
            try:
                self._keep(part, rows, len(x), q, k, size)
            except Told as reason:  # no error of ours: whoever needs the masses says that there are none
                self.reason = str(reason)
                return

    def _keep(
        self, part: int, rows: slice, count: int, q: dict[str, Tensor], k: dict[str, Tensor], size: tuple[int, int]
    ) -> None:
        fit = {name for name in self.layers if name in q and name in k and len(q[name]) == len(k[name]) == count}
        self.left |= self.layers.keys() - fit
        if not fit:
            raise Unreadable(
                "the attention cannot be read: another node, or the model itself, changes layers or their rows"
            )
        assert self._x is not None
        tokens = text_of(self._conds[part]).shape[1]
        found = {}
        for name in [name for name in self.layers if name in fit]:
            projected = attention.Projected(q[name], k[name], self.layers[name].heads).rows(rows)
            found[name] = attention.fold(projected.probabilities(), tokens).to(self._x.device)
        self.masses[part] = {name: attention.mass(each) for name, each in found.items()}
        if self.with_maps:
            self.tallies.setdefault(part, MapTally(size)).add(found)
            area = self._conds[part].get("area")
            if area is not None and len(area) == 4:
                self.places[part] = tuple(area)

    def _hook(self, network: Any, q: dict[str, Tensor], k: dict[str, Tensor], handles: list[Any]) -> None:
        # the network that makes this call: a copy of ours, in a thread of its own, where calls are split over devices
        for name, layer in cross_layers(network).items():
            for found, projection in ((q, layer.to_q), (k, layer.to_k)):
                handles.append(projection.register_forward_hook(partial(self._take, found, name)))

    def _take(self, found: dict[str, Tensor], name: str, *call: Any) -> None:
        with self._guarded():
            _keep_output(found, name, *call)


def _size(cond: Cond, x: Tensor) -> tuple[int, int]:
    """Return height and width of what the network gets of latents for a conditioning: all of them, or its area."""
    height, width = x.shape[-2:]
    area = cond.get("area")
    if area is None or len(area) != 4:
        return height, width
    return min(area[0], height - area[2]), min(area[1], width - area[3])


def _keep_output(found: dict[str, Tensor], name: str, _module: Any, _inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        found[name] = output.detach()


def cross_layers(network: Any) -> dict[str, Any]:
    """Return the cross-attention layers by their diffusers names, in the order of execution: down, mid, up.

    Raises:
        Unreadable: if there are none.

    """
    if hasattr(network.diffusion_model, "_orig_mod"):
        raise Unreadable("the model is compiled by another node: its attention cannot be read")
    found = cross_paths(network)
    return {name: network.diffusion_model.get_submodule(path) for name, path in found.items()}


def cross_paths(network: Any) -> dict[str, str]:
    """Return where the cross-attention layers are in the UNet, by their diffusers names, in the order of execution.

    Raises:
        Unreadable: if there are none.

    """
    names = comfy.utils.unet_to_diffusers(network.model_config.unet_config)
    here = {name.removesuffix(PROJECTION): own for name, own in names.items() if name.endswith(PROJECTION)}
    if not here:
        unet = getattr(network.diffusion_model, "_orig_mod", network.diffusion_model)
        name = type(unet).__name__
        joint = f"{name} has no cross-attention layers: prompt and picture share their attention"
        raise Unreadable(joint if name in JOINT else f"MemGuard does not know the attention of this model ({name})")
    return {f"{name}.attn2": own.removesuffix(".to_q.weight") for name, own in here.items()}
