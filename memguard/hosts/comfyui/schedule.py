"""The parts of a prompt that do not act at the first step: what prompt editing and timestep ranges switch on later.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Sequence

import comfy.samplers
from torch import Tensor

from .calls import Cond

LIMITS = ("timestep_start", "timestep_end")


def silent(conds: Sequence[Cond], x: Tensor, sigma: Tensor) -> tuple[Cond, ...]:
    """Return the conditionings of a prompt that time keeps from acting at a noise level."""
    limited = [cond for cond in conds if any(name in cond for name in LIMITS)]
    return tuple(cond for cond in limited if comfy.samplers.get_area_and_mult(cond, x, sigma) is None)


def line(cond: Cond, text: str | None = None) -> str:
    """Return what a report says of a part that was not scored, with its text where that is known."""
    start, end = cond.get("start_percent"), cond.get("end_percent")
    if start:
        when = f"begins at {start:.0%} of the schedule"
    elif end is not None and end < 1:
        when = f"ends at {end:.0%} of the schedule"
    else:
        when = "acts at other steps"
    named = "a part of the prompt" if text is None else f"the part {text!r} of the prompt"
    return f"{named}, which {when}, was not scored"
