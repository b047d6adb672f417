"""Guidance that begins later (Jain et al., "... inside the Attraction Basin ...", CVPR 2025).

Early guidance leads every seed into the same basin. Until the transition the noise gap is used with another scale:
0 is no guidance, a negative scale is opposite guidance. "static": the transition is at a fixed noise level. "dynamic":
it is at the first local minimum of the noise gap's norm, d[i-2] > d[i-1] < d[i]; guidance begins at step i.

``parity="official"``: before a dynamic transition the scale is 1, as in the code, and not 0, as in the paper. (The code
of the static transition also sets the schedule anew to 200 steps; that is left out.)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..setting import setting
from .base import Mitigation, Start, Step, Treatment


@dataclass(frozen=True)
class GuidanceDelay(Mitigation):
    """Guide later. At a strength s the scale before the transition goes the share s of the way from the run's own."""

    NAME = "guidance_delay"
    TITLE = "Guidance delay"
    SOURCE = "Jain et al., CVPR 2025"

    transition: Literal["static", "dynamic"] = setting(
        "static",
        "When guidance begins.",
        choices={"static": "at a timestep", "dynamic": "behind the first local minimum of the noise gap"},
    )
    until: float = setting(
        500.0,
        "Timestep of 1000, counting down, at which static guidance begins.",
        "The paper's 500; 650 with opposite guidance. Models without such a schedule compare 1000 times their sigma.",
        least=0,
        most=1000,
        step=10,
        what="a timestep",
    )
    before: float = setting(
        0.0,
        "Guidance scale until then: 0 is without the prompt, below 0 away from it.",
        shown=(-30, 30),
        step=0.5,
        what="a guidance scale",
    )

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
