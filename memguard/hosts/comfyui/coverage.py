"""Where a prompt acts: ComfyUI hands out exact zeros wherever an area, a mask or a time limit switches it off.

Part of the ComfyUI host.
"""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from torch import Tensor

LIMITS = frozenset({"area", "mask", "timestep_start", "timestep_end"})


def coverage(conds: list[dict[str, Any]], x: Tensor, sigma: Tensor) -> Tensor | None:
    """Return where at least one of a role's conditionings acts.

    Args:
        conds: one role's conditionings, processed by the sampler.
        x: the noisy latents, [B, C, ...].
        sigma: noise level of each row, [B].

    Returns:
        bool [B, 1, ...], or None where the role acts everywhere.

    """
    if any(LIMITS.isdisjoint(c) and c.get("strength", 1.0) != 0 for c in conds):
        return None  # the common case costs nothing
    covered = torch.zeros((len(x), 1, *x.shape[2:]), dtype=torch.bool, device=x.device)
    for cond in conds:
        part = comfy.samplers.get_area_and_mult(cond, x, sigma)
        if part is None:
            continue
        region = covered
        if part.area is not None:
            dims = len(part.area) // 2
            for i in range(dims):
                region = region.narrow(i + 2, part.area[dims + i], part.area[i])
        region |= (part.mult != 0).any(1, keepdim=True)
    return covered


def both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return where two roles act together; None means everywhere."""
    if a is None or b is None:
        return b if a is None else a
    return a & b
