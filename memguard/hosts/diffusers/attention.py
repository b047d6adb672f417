"""Which attention of a denoiser is read: a UNet's by its projections, any other's by structure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from .calls import by_name
from .masses import Masses
from .projected import Reading
from .rows import Unscored
from .structure import compiled, standing

JOINT = ("SD3Transformer2DModel", "FluxTransformer2DModel")  # prompt and picture share one attention
ORDER = ("down", "mid", "up")  # of execution; named_modules() has the middle last


@contextmanager
def reading(module: nn.Module) -> Iterator[Reading]:
    """Read the cross-attention of a denoiser for the time of the block; no output is changed.

    Raises:
        Unscored: if the model is compiled.

    """
    plain = getattr(module, "_orig_mod", module)
    layers = cross_layers(plain)
    if plain is not module or module._compiled_call_impl is not None or (not layers and compiled(plain)):
        raise Unscored("the model is compiled: its attention cannot be read")
    if not layers:
        masses = Masses(module)
        with masses.structure.installed():
            yield masses
        return
    found = Reading(layers)

    def call(inner: Any, *args: Any, **kwargs: Any) -> Any:
        found.guarded(begin, args, kwargs)
        return inner(*args, **kwargs)

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if found.reads:
            found.begin(by_name(module, args, kwargs).get("encoder_hidden_states"))

    with ExitStack() as stack:
        for name, layer in layers.items():
            for where, projection in (("q", layer.to_q), ("k", layer.to_k)):

                def hook(_module: Any, _inputs: Any, output: Any, where: str = where, name: str = name) -> None:
                    found.guarded(found.keep, where, name, output)

                stack.callback(projection.register_forward_hook(hook).remove)
        stack.enter_context(standing(module, call))
        yield found


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
