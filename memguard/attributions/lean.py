"""Gradients through a large denoiser in little memory: blocks are computed again in the backward pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..aside import aside

# The blocks of diffusers, ComfyUI and the original codes, by the end of their classes' names. Of nested ones the outer.
BLOCKS = re.compile(r"(Res(net)?Block(2D)?|TransformerBlock|JointBlock|StreamBlock)$")


@contextmanager
def lean(module: nn.Module, held: Sequence[Tensor] = ()) -> Iterator[int]:
    """Keep no activations inside the blocks of a module and take its weights out of the graph; both for a while.

    Gradients are those of a plain backward. The block must last until the backward pass is over. A model of unknown
    blocks just takes more memory.

    Args:
        module: the denoiser.
        held: leaves that hooks inside the blocks use and whose gradient is wanted, besides that of the blocks' inputs.

    Yields:
        the number of blocks that are computed again.

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
            block.forward = partial(_again, block.forward, tuple(held))
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


def _again(forward: Callable[..., Any], held: tuple[Tensor, ...], /, *args: Any, **kwargs: Any) -> Any:
    values, tree = tree_flatten((args, kwargs), is_leaf=lambda value: isinstance(value, dict) and value is not kwargs)
    # ComfyUI keeps the number of the block in such a dict and counts on: the second run must find that of the first
    values = [dict(value) if isinstance(value, dict) else value for value in values]
    places = [i for i, value in enumerate(values) if isinstance(value, Tensor)]

    def call(*tensors: Tensor) -> Any:
        given = list(values)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor.clone()  # a block may add to its inputs in place
        again, named = tree_unflatten(given, tree)
        return forward(*again, **named)

    return _Twice.apply(call, held, *held, *(values[place] for place in places))


class _Twice(torch.autograd.Function):
    """Run a block without a graph, and once more with one when its gradient is wanted.

    torch's own checkpoint keeps references to what a block saves on its second run. Flux adds to such tensors in place,
    and gradients then come out wrong without an error.
    """

    @staticmethod
    def forward(ctx: Any, call: Callable[..., Any], held: tuple[Tensor, ...], *tensors: Tensor) -> Any:
        # a backward pass may run in another thread, and after what held for the forward pass is over
        ctx.call, ctx.held = partial(copy_context().run, call), held
        # a block may draw, as token merging does: its second run must draw what the first one drew
        ctx.cpu = torch.get_rng_state()
        ctx.cuda = [(t.device, torch.cuda.get_rng_state(t.device)) for t in tensors if t.is_cuda][:1]
        ctx.save_for_backward(*tensors[len(held) :])
        return call(*tensors[len(held) :])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        held, wanted = ctx.held, ctx.needs_input_grad[2:]
        inputs = zip(ctx.saved_tensors, wanted[len(held) :], strict=True)
        given = [tensor.detach().requires_grad_(want) for tensor, want in inputs]
        with aside(), torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors():
            torch.set_rng_state(ctx.cpu)
            for device, state in ctx.cuda:
                torch.cuda.set_rng_state(state, device)
            made = ctx.call(*given)
            made = made if isinstance(made, tuple) else (made,)
            pairs = [(out, g) for out, g in zip(made, gradients, strict=True) if g is not None and out.requires_grad]
            if not pairs:
                return (None, None, *(None for _ in wanted))  # this block uses none of what is held
            asked = [leaf for leaf, want in zip((*held, *given), wanted, strict=True) if want]
            outputs, seeds = zip(*pairs, strict=True)
            found = iter(torch.autograd.grad(outputs, asked, seeds, allow_unused=True))
        return (None, None, *(next(found) if want else None for want in wanted))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if BLOCKS.search(type(child).__name__):
            yield child
        else:
            yield from _blocks(child)
