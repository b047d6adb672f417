"""Gradients in hosts that sample in inference mode and load weights as inference tensors: ComfyUI and Forge."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attributions.lean import lean

# whose kernels without a derivative are left out while this says that somebody trains; hosts that lack it have none
TRAINING = "comfy.model_management", "in_training"
# operators of newer ComfyUI that rotate one tensor; each has a brother, without the 1, that rotates two
ROPE = "apply_rope1", "apply_rope_split_half1"  # of Flux and its kin, of Ernie and LTXV


@contextmanager
def differentiable(module: nn.Module, held: Sequence[Tensor] = ()) -> Iterator[int]:
    """Let autograd through a module for the time of the block: no weight is copied and none gets a gradient.

    Args:
        module: the network.
        held: leaves that hooks inside the module use, see ``lean``.

    Yields:
        the number of blocks that are computed again in the backward pass.

    """
    _know_rope()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_as_in_training())
        stack.enter_context(normal_weights(module))
        blocks = stack.enter_context(lean(module, held))
        if blocks == 0:
            # blocks may add to their inputs in place; those that ``lean`` knows are seen to there, and it cannot nest
            stack.enter_context(torch.autograd.graph.allow_mutation_on_saved_tensors())
        yield blocks


@contextmanager
def normal_weights(module: nn.Module) -> Iterator[None]:
    """Stand normal tensors over the storage of a module's inference tensors, and put those back afterwards."""
    saved: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for part in module.modules():
            tables: tuple[dict[str, Any], ...] = (part._parameters, part._buffers)
            for table in tables:
                for name, tensor in table.items():
                    if tensor is not None and tensor.is_inference():
                        saved.append((table, name, tensor))
                        table[name] = _over(tensor, table is part._parameters)
        yield
    finally:
        for table, name, tensor in saved:
            table[name] = tensor


@contextmanager
def _as_in_training() -> Iterator[None]:
    """Let a host take the branches of its models that have a derivative, for the time of the block."""
    name, switch = TRAINING
    host = sys.modules.get(name)
    if host is None or not hasattr(host, switch):
        yield
        return
    before = getattr(host, switch)
    setattr(host, switch, True)
    try:
        yield
    finally:
        setattr(host, switch, before)


@lru_cache(maxsize=1)  # an operator takes one derivative per process
def _know_rope() -> None:
    """Give ComfyUI's rotary operators the derivative that they lack: backward is the rotation the other way round."""
    for one in ROPE if "comfy_kitchen" in sys.modules else ():
        for name in (one, one.removesuffix("1")):
            # RuntimeError: a version that brings a derivative of its own; AttributeError: one without the operator
            with suppress(RuntimeError, AttributeError):
                torch.library.register_autograd(
                    f"comfy_kitchen::{name}", partial(_rotate_back, one), setup_context=_keep_angles
                )


def _keep_angles(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    *_, angles = inputs
    ctx.save_for_backward(angles)


def _rotate_back(one: str, ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    (angles,) = ctx.saved_tensors
    rope = getattr(torch.ops.comfy_kitchen, one)
    back = angles.transpose(-1, -2).contiguous()
    return (*(rope(gradient.contiguous(), back) for gradient in gradients), None)


def normal(tensor: Tensor) -> Tensor:
    """Return a copy that autograd may save."""
    return tensor.detach().clone()


def _over(tensor: Tensor, is_parameter: bool) -> Tensor:
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    plain = plain.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return nn.Parameter(plain, requires_grad=False) if is_parameter else plain
