"""Gradients through a large denoiser in little memory: blocks are computed again in the backward pass.

May import: torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

# The blocks of diffusers, ComfyUI and the original codes, by the end of their classes' names. Of nested ones the outer.
BLOCKS = re.compile(r"(Res(net)?Block(2D)?|TransformerBlock|JointBlock|StreamBlock)$")


@contextmanager
def lean(module: nn.Module) -> Iterator[int]:
    """Checkpoint the activations of every block of a module and take its weights out of the graph; both for a while.

    Gradients are those of a plain backward. The block must last until the backward pass is over. A model of unknown
    blocks just takes more memory.

    Yields:
        the number of blocks that are checkpointed.

    """
    blocks = list(_blocks(module))
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    compiled = getattr(module, "_compiled_call_impl", None)
    before = [(block, block.__dict__.get("forward")) for block in blocks]
    try:
        if compiled is not None:
            module._compiled_call_impl = None  # a compiled graph has its own plan of what to keep
        for weight in weights:
            weight.requires_grad_(False)
        for block in blocks:
            block.forward = partial(_again, block.forward)
        yield len(blocks)
    finally:
        for block, forward in before:
            if forward is None:
                del block.forward
            else:
                block.forward = forward
        for weight in weights:
            weight.requires_grad_(True)
        if compiled is not None:
            module._compiled_call_impl = compiled


def _again(forward: Any, *args: Any, **kwargs: Any) -> Any:
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if BLOCKS.search(type(child).__name__):
            yield child
        else:
            yield from _blocks(child)
