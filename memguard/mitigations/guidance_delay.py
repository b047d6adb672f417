"""Guidance that begins later (Jain et al., "... inside the Attraction Basin ...", CVPR 2025).

Early guidance leads every seed into the same basin. Until the transition the noise gap is used with another scale:
0 is no guidance, a negative scale is opposite guidance. "static": the transition is at a fixed noise level. "dynamic":
it is at the first local minimum of the noise gap's norm, d[i-2] > d[i-1] < d[i]; guidance begins at step i.

``parity="official"``: before a dynamic transition the scale is 1, as in the code, and not 0, as in the paper. (The code
of the static transition also sets the schedule anew to 200 steps; that is left out.)

May import: memguard.mitigations, torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from .base import Mitigation, Start, Step, Treatment

TRANSITIONS = ("static", "dynamic")


@dataclass(frozen=True)
class GuidanceDelay(Mitigation):
    """Guide later. At a strength s the scale before the transition goes the share s of the way from the run's own.

    Args:
        transition: "static" or "dynamic".
        until: timestep of 1000 at which a static transition is (the paper's 500; 650 with opposite guidance). Models
            without such a schedule compare their sigma with ``until / 1000``.
        before: guidance scale before the transition; negative is opposite guidance.

    """

    NAME = "guidance_delay"
    TITLE = "Guidance delay"
    SOURCE = "Jain et al., CVPR 2025"

    transition: Literal["static", "dynamic"] = "static"
    until: float = 500.0
    before: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.demand("transition", self.transition in TRANSITIONS, f"use one of {', '.join(TRANSITIONS)}")
        self.demand("until", 0 <= self.until <= 1000, "give a timestep from 0 to 1000")
        self.demand("before", math.isfinite(self.before), "give a guidance scale, such as 0 or -2")

    def _treat(self, start: Start, before: Treatment) -> Treatment:
        scale = 1.0 if self.parity == "official" and self.transition == "dynamic" else self.before
        if self.transition == "dynamic":
            delay: Static | Dynamic = Dynamic(scale, self.strength)
        else:
            delay = Static(scale, self.strength, self.until)
        return replace(before, guidance=(*before.guidance, delay)).note(delay.line)


class Static:
    """Another scale above a timestep."""

    def __init__(self, scale: float, strength: float, until: float) -> None:
        self.scale, self.strength, self.until = scale, strength, until
        self.line = f"guidance scale {scale:g} until timestep {until:g}"

    def __call__(self, gap: Tensor, step: Step) -> Tensor:
        """Return the gap, scaled before the transition."""
        now = step.sigma * 1000 if step.timestep is None else step.timestep
        return gap * _factor(self, step) if now > self.until else gap


class Dynamic:
    """Another scale until the noise gap has passed its first local minimum."""

    def __init__(self, scale: float, strength: float) -> None:
        self.scale, self.strength = scale, strength
        self.line = f"guidance scale {scale:g} until the first local minimum of the noise gap"
        self._norms: list[float] = []
        self._over = False

    def __call__(self, gap: Tensor, step: Step) -> Tensor:
        """Return the gap, scaled before the transition."""
        if not self._over:
            self._norms.append(float(torch.linalg.vector_norm(gap.float())))
            self._over = transition(self._norms[-3:]) is not None
        return gap if self._over else gap * _factor(self, step)


def transition(norms: list[float]) -> int | None:
    """Return the first i with norms[i-2] > norms[i-1] < norms[i]; None where there is none."""
    found = (i for i in range(2, len(norms)) if norms[i - 2] > norms[i - 1] < norms[i])
    return next(found, None)


def _factor(delay: Static | Dynamic, step: Step) -> float:
    """Return what makes the sampler's scale that of the delay."""
    return 1 + delay.strength * (delay.scale / step.scale - 1)
