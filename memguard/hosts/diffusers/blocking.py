"""Value neurons of cross-attention layers, multiplied with factors while the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def blocking(layers: Mapping[str, Any], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply the values of some layers for the time of the block; no hook stays behind.

    Args:
        layers: the model's cross-attention layers by name.
        masks: factors [rows, width] per layer.

    Raises:
        ValueError: if the block ends well and the values of a layer were not asked for: something stands in its place.

    """
    called = set()
    handles = []
    try:
        for name, factors in masks.items():

            def hook(_module: Any, _inputs: Any, output: Tensor, name: str = name, factors: Tensor = factors) -> Tensor:
                called.add(name)
                return output * factors.to(output)[:, None]

            handles.append(layers[name].to_v.register_forward_hook(hook))
        yield
        missing = next((name for name in masks if name not in called), None)
        if missing is not None:
            raise ValueError(
                f"the values of {missing} cannot be blocked: its projections are fused or replaced;"
                " call unfuse_qkv_projections() or take the adapter off"
            )
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def eager(module: nn.Module) -> Iterator[None]:
    """Let a compiled model run as it was written, so that hooks are seen; compiled again afterwards."""
    compiled = {m: m._compiled_call_impl for m in module.modules() if m._compiled_call_impl is not None}
    try:
        for part in compiled:
            part._compiled_call_impl = None
        yield
    finally:
        for part, call in compiled.items():
            part._compiled_call_impl = call
