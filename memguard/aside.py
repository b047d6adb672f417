"""``aside``: the one block in which everything is evaluated that MemGuard computes beside a run.

What a host draws afterwards is what it would have drawn without us: modules may draw during a call (token merging,
tiling, dropout, networks that sample), and a call of ours would shift the generators for the rest of the run.

May import: torch, numpy and the standard library.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def aside(*used: Any) -> Iterator[None]:
    """Leave every global random generator as it was before the block: torch's, numpy's and Python's.

    Args:
        used: devices, tensors or modules that the block evaluates on; generators of their devices are kept, beside
            those of the CPU and of every GPU that a generator was already made for.

    """
    python, numbers, cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    others = [(device, _module(device), _state(device)) for device in _devices(used)]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.random.set_rng_state(cpu)
        for device, module, state in others:
            module.set_rng_state(state) if device.type == "mps" else module.set_rng_state(state, device)


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
    return module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
