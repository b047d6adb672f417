"""``aside``: the one block in which everything is evaluated that MemGuard computes beside a run.

What a host draws afterwards is what it would have drawn without us: modules may draw during a call (token merging,
tiling, dropout, networks that sample), and a call of ours would shift the generators for the rest of the run.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module()))  # torch's own tables of a module: weights, buffers, hooks, parts


@contextmanager
def aside(*used: Any) -> Iterator[None]:
    """Leave every random generator as it was before the block: torch's, numpy's, Python's, and those of modules.

    Args:
        used: devices, tensors or modules that the block evaluates on; generators of their devices are kept, beside
            those of the CPU and of every GPU that a generator was already made for, and those that a module holds for
            itself (token merging forks one).

    """
    python, numbers, cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    others = [(device, _module(device), _state(device)) for device in _devices(used)]
    held = [(place, name, value, _kept(value)) for place, name, value in _held(used)]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.random.set_rng_state(cpu)
        for device, module, state in others:
            module.set_rng_state(state) if device.type == "mps" else module.set_rng_state(state, device)
        for place, name, value, before in held:
            place[name] = value  # one that was made within the block goes again
            if before is not None:
                value.set_state(before)


def _held(used: Iterable[Any]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Find the places of generators in the attributes of modules: the dict, the key, what stands there."""
    seen: set[int] = set()
    for module in (part for each in used if isinstance(each, nn.Module) for part in each.modules()):
        places = [vars(module)]
        while places:
            place = places.pop()
            if id(place) in seen:
                continue
            seen.add(id(place))
            for name, value in place.items():
                if isinstance(value, torch.Generator) or name == "generator":
                    yield place, name, value
                elif type(value) is dict and name not in _OWN:
                    places.append(value)


def _kept(value: Any) -> Tensor | None:
    return value.get_state() if isinstance(value, torch.Generator) else None


def _devices(used: Iterable[Any]) -> set[torch.device]:
    """Return the accelerators whose generators an evaluation may move."""
    found = set()
    for each in used:
        if isinstance(each, nn.Module):
            found |= {tensor.device for tensor in (*each.parameters(), *each.buffers())}
        elif isinstance(each, Tensor):
            found.add(each.device)
        elif each is not None:
            found.add(torch.device(each))
    # under offload a module lies on the CPU and computes elsewhere
    for kind in ("cuda", "xpu"):
        module = getattr(torch, kind, None)
        if module is not None and module.is_available() and module.is_initialized():
            found |= {torch.device(kind, index) for index in range(module.device_count())}
    if torch.backends.mps.is_available():
        found.add(torch.device("mps"))
    return {device for device in found if device.type in ("cuda", "xpu", "mps")}


def _module(device: torch.device) -> Any:
    return getattr(torch, device.type)


def _state(device: torch.device) -> Tensor:
    module = _module(device)
    found: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return found
