"""Queries and keys of the cross-attention layers, read with hooks on their projections while the model runs.

Room: memguard.hosts, diffusers. May import: memguard.attributions, memguard.troubles, torch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ...attributions.attention import Projected
from ...troubles import careful, in_words
from .rows import OWN, Unscored

log = logging.getLogger("memguard")

JOINT = ("SD3Transformer2DModel", "FluxTransformer2DModel")  # prompt and picture share one attention
ORDER = ("down", "mid", "up")  # of execution; named_modules() has the middle last


class Reading:
    """What the cross-attention layers of the last model call projected."""

    def __init__(self, layers: dict[str, Any]) -> None:
        self.layers = layers
        self._q: dict[str, Tensor] = {}
        self._k: dict[str, Tensor] = {}
        self._again = False  # whether a call of our own is read
        self.broken = ""

    @contextmanager
    def again(self) -> Iterator[None]:
        """Read the call that is made inside, although it is our own: the first one under a treatment."""
        self._again, self._q, self._k = True, {}, {}
        try:
            yield
        finally:
            self._again = False

    def take(self, rows: slice) -> dict[str, Projected]:
        """Return rows of the last call, layer by layer in the order of execution, and forget the call.

        Raises:
            Unscored: if a layer was not called, because something else stands in its place, or none was.

        """
        if self.broken:
            raise Unscored(f"the attention cannot be read: {self.broken}")
        if not self._q and not self._k:
            raise Unscored("the attention cannot be read: no cross-attention layer of the model was called")
        missing = next((name for name in self.layers if name not in self._q or name not in self._k), None)
        if missing is not None:
            raise Unscored(f"the attention of {missing} cannot be read: its projections are fused or replaced")
        found = {}
        for name, layer in self.layers.items():
            projected = Projected(self._q[name], self._k[name], int(layer.heads), float(layer.scale))
            found[name] = projected.rows(rows)
        self._q, self._k = {}, {}
        return found

    def _keep(self, where: str, name: str, output: Any) -> None:
        if (OWN.get() and not self._again) or self.broken:
            return
        with careful(self._failed):
            self._take(where, name, output)

    def _take(self, where: str, name: str, output: Any) -> None:
        getattr(self, where)[name] = output.detach()

    def _failed(self, error: Exception) -> None:
        log.warning("the attention cannot be read: %s", error, exc_info=error)
        self.broken = in_words(error)


@contextmanager
def reading(module: nn.Module) -> Iterator[Reading]:
    """Read the cross-attention of a UNet for the time of the block; no output is changed.

    Raises:
        Unscored: if the model has no cross-attention of its own, or is compiled.

    """
    plain = getattr(module, "_orig_mod", module)
    if plain is not module or module._compiled_call_impl is not None:
        raise Unscored("the model is compiled: its attention cannot be read")
    layers = cross_layers(plain)
    if not layers:
        raise Unscored(no_layers(plain))
    found = Reading(layers)
    handles = []
    try:
        for name, layer in layers.items():
            for where, projection in (("_q", layer.to_q), ("_k", layer.to_k)):

                def hook(_module: Any, _inputs: Any, output: Any, where: str = where, name: str = name) -> None:
                    found._keep(where, name, output)

                handles.append(projection.register_forward_hook(hook))
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def attending(wanted: bool, module: nn.Module) -> Iterator[Reading | str | None]:
    """Read the cross-attention if a detector asks for it; where it cannot be read, give the reason instead."""
    with ExitStack() as stack:
        found: Reading | str | None = None
        if wanted:
            try:
                found = stack.enter_context(reading(module))
            except Unscored as reason:
                found = str(reason)
        yield found


def no_layers(plain: nn.Module) -> str:
    """Return why a model has no cross-attention for us."""
    name = type(plain).__name__
    if name in JOINT:
        return f"{name} has no cross-attention layers: prompt and picture share their attention"
    return f"MemGuard does not know the attention of {name}, so it cannot read or change it"


def cross_layers(module: nn.Module) -> dict[str, Any]:
    """Return the cross-attention layers by name, in the order of execution."""
    found = {
        name: layer
        for name, layer in module.named_modules()
        if name.endswith(".attn2") and name.startswith(ORDER) and hasattr(layer, "to_k")
    }
    return dict(sorted(found.items(), key=lambda item: ORDER.index(item[0].split("_")[0])))
