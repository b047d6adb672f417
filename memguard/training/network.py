"""The network as training loops hold it: wrapped, of one of two signatures, with the caption in several places."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

READING: ContextVar[bool] = ContextVar("memguard_reading", default=False)  # while a loop's forward is read


def unwrapped(network: Any, through: bool = False) -> Any:
    """Return the network within DataParallel, DistributedDataParallel and peft's wrapper.

    Args:
        network: as the loop holds it.
        through: what is compiled too; a compiled network stays otherwise.

    """
    while isinstance(network, nn.Module):
        original = network._modules.get("_orig_mod")  # hands out its attributes as its own
        if not through and (original is not None or network._compiled_call_impl is not None):
            break
        if original is not None:
            network = original
        elif isinstance(inner := getattr(network, "module", None), nn.Module):
            network = inner
        elif callable(base := getattr(network, "get_base_model", None)):
            network = base()
        else:
            break
    return network


def called(network: Any, noisy: Tensor, timesteps: Tensor, text: Tensor, more: Mapping[str, Any]) -> Tensor:
    """Return a prediction, [B, C, h, w] or as the network has it.

    UNets take latents, timesteps and text in this order; diffusers' transformers have the text second, so they are
    called by name. DistributedDataParallel is gone around: its forward exchanges buffers, and would wait forever for
    ranks that have no sample to judge.
    """
    while isinstance(network, nn.parallel.DistributedDataParallel):
        network = network.module
    plain = unwrapped(network, through=True)
    if "hidden_states" in inspect.signature(getattr(plain, "forward", plain)).parameters:
        found = network(hidden_states=noisy, timestep=timesteps, encoder_hidden_states=text, **more)
    else:
        found = network(noisy, timesteps, text, **more)
    found = getattr(found, "sample", found)
    made: Tensor = found[0] if isinstance(found, tuple) else found
    return made


def precision(given: Tensor, predicted: Tensor) -> Any:
    """Return the autocast that the loop's prediction was made in: its rounding is as large as the gaps compared."""
    if given.dtype == torch.float32 and predicted.dtype in (torch.float16, torch.bfloat16):
        return torch.autocast(given.device.type, predicted.dtype)
    return nullcontext()


def dropping(network: Any) -> bool:
    """Return whether the network drops values at random now."""
    parts = network.modules() if isinstance(network, nn.Module) else ()
    return any(isinstance(part, nn.modules.dropout._DropoutNd) and part.training and part.p > 0 for part in parts)


def rows(value: Any, judged: Tensor, count: int) -> Any:
    """Return some samples' part of an argument: of tensors of ``count`` rows, also within dicts, lists and tuples."""
    if isinstance(value, Tensor):
        return value[judged] if value.ndim and len(value) == count else value
    if isinstance(value, Mapping):
        return {name: rows(each, judged, count) for name, each in value.items()}
    return type(value)(rows(each, judged, count) for each in value) if isinstance(value, list | tuple) else value


def replaced(given: Mapping[str, Any], by: Mapping[str, Any], count: int, like: Tensor) -> dict[str, Any]:
    """Return arguments of which some are replaced; tensors of one row are repeated to ``count``."""
    found = dict(given)
    for name, value in by.items():
        if isinstance(value, Mapping):
            found[name] = replaced(given.get(name, {}), value, count, like)
        elif isinstance(value, Tensor):
            value = value.to(like.device, like.dtype if value.is_floating_point() else value.dtype)
            found[name] = value.expand(count, *value.shape[1:])
        else:
            found[name] = value
    return found
