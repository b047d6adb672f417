"""The cross-attention layers of a UNet in the original code's layout, by their diffusers names.

Part of the WebUI hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

SIDES = (("input_blocks", "down_blocks", "Downsample"), ("output_blocks", "up_blocks", "Upsample"))


def cross_layers(network: Any) -> dict[str, Any]:
    """Return the layers in the order of execution: down, mid, up; none for a network of another kind."""
    if not all(hasattr(network, name) for name in ("input_blocks", "middle_block", "output_blocks")):
        return {}
    down, up = ({**_side(getattr(network, own), theirs, turn)} for own, theirs, turn in SIDES)
    middle = dict(_layers(network.middle_block, "mid_block.attentions.0"))
    return {**down, **middle, **up}


def _side(blocks: Any, name: str, turn: str) -> dict[str, nn.Module]:
    """Return the layers of one side; a block of diffusers ends where the resolution changes."""
    found: dict[str, nn.Module] = {}
    block = index = 0
    for part in blocks:
        kinds = [type(child).__name__ for child in part]
        residual = any("ResBlock" in kind for kind in kinds)
        if residual:
            found |= _layers(part, f"{name}.{block}.attentions.{index}")
            index += 1
        if turn in kinds:
            block, index = block + 1, 0
    return found


def _layers(part: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for child in part.children():
        for number, transformer in enumerate(getattr(child, "transformer_blocks", ())):
            if getattr(transformer, "attn2", None) is not None:
                yield f"{prefix}.transformer_blocks.{number}.attn2", transformer.attn2
