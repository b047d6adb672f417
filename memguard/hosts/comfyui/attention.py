"""Cross-attention of a UNet, read beside the model's own calls: nothing that the model computes is replaced.

Queries and keys are what the projections of the attn2 layers give out, so any attention backend, override or
replacement (IPAdapter) may work with them. Hooks are on the network only for the call that is read, and that call's own
APPLY_MODEL wrapper tells which rows carry which prompt.

Part of the ComfyUI host; may import: comfy, torch, memguard.attributions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import comfy.utils
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...attributions import attention
from ...attributions.maps import MapTally
from ...troubles import Told
from .calls import TEXT, Cond

KEY = "memguard_attention"
COMPILED = "torch.compile"  # key of the wrapper that puts a compiled network in place
PROJECTION = ".attn2.to_q.weight"


class Unreadable(Told):
    """Why the attention of a model cannot be read, in words for the user."""


class AttentionReader:
    """Reads the attention of one role's conditionings, call by call.

    Args:
        network: the model that ComfyUI's guider holds (``inner_model``).
        with_maps: whether to keep maps as well; they take the most memory.

    Attributes:
        masses: of the last call: part -> layer -> mass [B, tokens].
        tallies: part -> its maps of all calls that were read.
        places: part -> (height, width, y, x) of its area in the latent; missing where it covers everything.
        reason: why the last call has no masses.

    Raises:
        Unreadable: if the model has no cross-attention of its own, or is compiled for good.

    """

    def __init__(self, network: Any, with_maps: bool = False) -> None:
        self.layers = cross_layers(network)
        self.with_maps = with_maps
        self.masses: dict[int, dict[str, Tensor]] = {}
        self.tallies: dict[int, MapTally] = {}
        self.places: dict[int, tuple[int, ...]] = {}
        self.reason = ""
        self._conds: Sequence[Cond] = ()
        self._rows: frozenset[int] = frozenset()

    def expect(self, conds: Sequence[Cond], indices: Sequence[int]) -> None:
        """Say what the next call evaluates: the prompt's conditionings, and where they stand among all roles."""
        self._conds, self._rows = conds, frozenset(indices)
        self.masses, self.reason = {}, ""

    def options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return model_options for a call that is read: with our wrapper, and without a compiled network."""
        found = eager(options)
        found["transformer_options"]["wrappers"][WrappersMP.APPLY_MODEL][KEY] = [self._apply]
        return found

    def _apply(self, executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        options = kwargs.get("transformer_options") or (args[4] if len(args) > 4 else {})
        with self._hooked() as (q, k):
            out = executor(x, *args, **kwargs)
        try:
            self._sort(x, options, q, k)
        except Exception as error:  # of ours: the picture must not be lost for it
            self.reason = str(error)
        return out

    def _sort(self, x: Tensor, options: dict[str, Any], q: dict[str, Tensor], k: dict[str, Tensor]) -> None:
        chunks = list(zip(options.get("cond_or_uncond", ()), options.get("uuids", ()), strict=False))
        for number, (index, uuid) in enumerate(chunks):
            part = next((i for i, cond in enumerate(self._conds) if cond.get("uuid") == uuid), None)
            # what is evaluated again are perturbed passes (PAG, SAG)
            if index in self._rows and part is not None and part not in self.masses:
                count = len(x) // len(chunks)
                self._keep(part, slice(number * count, (number + 1) * count), q, k, (x.shape[-2], x.shape[-1]))

    def _keep(self, part: int, rows: slice, q: dict[str, Tensor], k: dict[str, Tensor], size: tuple[int, int]) -> None:
        missing = next((name for name in self.layers if name not in q or name not in k), None)
        if missing is not None:
            raise Unreadable(f"the attention of {missing} cannot be read: another node replaces the layer")
        tokens = self._conds[part]["model_conds"][TEXT].cond.shape[1]
        found = {}
        for name, layer in self.layers.items():
            projected = attention.Projected(q[name], k[name], layer.heads).rows(rows)
            found[name] = attention.fold(projected.probabilities(), tokens)
        self.masses[part] = {name: attention.mass(each) for name, each in found.items()}
        if self.with_maps:
            self.tallies.setdefault(part, MapTally(size)).add(found)
            area = self._conds[part].get("area")
            if area is not None and len(area) == 4:
                self.places[part] = tuple(area)

    @contextmanager
    def _hooked(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        q: dict[str, Tensor] = {}
        k: dict[str, Tensor] = {}
        handles = []
        try:
            for name, layer in self.layers.items():
                for found, projection in ((q, layer.to_q), (k, layer.to_k)):
                    handles.append(projection.register_forward_hook(partial(_keep_output, found, name)))
            yield q, k
        finally:
            for handle in handles:
                handle.remove()


def _keep_output(found: dict[str, Tensor], name: str, _module: Any, _inputs: Any, output: Tensor) -> None:
    found[name] = output.detach()


def eager(options: dict[str, Any]) -> dict[str, Any]:
    """Return model_options of its own, for a call that goes through the network as it is and not as compiled."""
    transformer = dict(options.get("transformer_options", {}))
    wrappers = {kind: dict(by_key) for kind, by_key in transformer.get("wrappers", {}).items()}
    wrappers.setdefault(WrappersMP.APPLY_MODEL, {}).pop(COMPILED, None)
    return {**options, "transformer_options": {**transformer, "wrappers": wrappers}}


def is_compiled(options: dict[str, Any]) -> bool:
    """Whether a call goes through a compiled network, so that reading it needs a call of its own."""
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    return bool(wrappers.get(WrappersMP.APPLY_MODEL, {}).get(COMPILED))


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
        raise Unreadable(
            f"{type(unet).__name__} has no cross-attention layers: prompt and picture share their attention"
        )
    return {f"{name}.attn2": own.removesuffix(".to_q.weight") for name, own in here.items()}
