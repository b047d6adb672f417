"""Adjustment of the starting noise (Han, Kim et al., NeurIPS 2025), and SAIL (Jeon et al., ICML 2025) as an option.

"batch": M times x <- x - gamma (gap(x + delta) - gap(x)) with delta = rho gap / ||gap|| of each sample, no gradient;
then no guidance down to timestep 900. "sample": AdamW on x itself until ||gap|| <= target, each sample for itself.
"sail": Adam on x for ||gap(x + s)|| + alpha ||x||, s = gap / ||gap||.

Numbers in the papers are for SD1's 4 x 64 x 64 latents; here rho and the targets go with the root of the number of
elements. What differs from the official codes, which ``parity="official"`` reproduces: "sample" and "sail" project x
back to the norm of the starting noise (in bfloat16 the official weight decay of .01 rounds to nothing, and nothing
holds x on the shell of a Gaussian), and "sail" takes s anew at each step and not once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..setting import setting
from ..troubles import NotFinite
from .base import Mitigation, Start, Treatment
from .guidance_delay import Static
from .prompt_optimization import FAILED

SD1 = 4 * 64 * 64  # elements of the latents that the papers' numbers are for


@dataclass(frozen=True)
class NoiseAdjustment(Mitigation):
    """Start from other noise. At a strength s it goes the share s of the way, at the norm of the starting noise."""

    NAME = "noise_adjustment"
    TITLE = "Noise adjustment"
    SOURCE = "Han et al., NeurIPS 2025"

    method: Literal["batch", "sample", "sail"] = setting(
        "batch",
        "How the noise is found.",
        choices={
            "batch": "a few predictions, no gradients",
            "sample": "gradients, until the score is low",
            "sail": "gradients, 10 steps (Jeon et al., ICML 2025)",
        },
    )
    rho: float = setting(50.0, "Of method batch: radius of the look around.", above=0, what="a radius")
    gamma: float = setting(0.7, "Of method batch: length of a move.")
    rounds: int = setting(2, "Of method batch: how often the noise moves.", least=0, shown=(0, 20))
    until: float = setting(
        900.0,
        "Of method batch: timestep of 1000 down to which there is no guidance.",
        least=0,
        most=1000,
        step=10,
        what="a timestep",
    )
    lr: float | None = setting(
        None,
        "Of sample and sail: learning rate; the paper's .01 and .05 where none is given.",
        kind=float,
        above=0,
        what="a learning rate",
    )
    target: float | None = setting(
        None,
        "Of sample and sail: loss at which to stop; the paper's .9 and 8.2 where none is given.",
        "For sample it is that of the median ordinary prompt, where the profile knows it and it is lower.",
        kind=float,
        above=0,
        shown=(0, 1000),
        step=0.01,
        what="a noise gap",
        unset=0,
    )
    iterations: int | None = setting(
        None,
        "Of sample and sail, at most; the paper's 1000 and 10 where none are given.",
        kind=int,
        least=0,
        shown=(0, 5000),
        unset=0,
    )
    alpha: float = setting(0.05, "Of sail: weight of the norm of the noise.")

    def _treat(self, start: Start, before: Treatment) -> Treatment:
        noise = start.starting_noise(before).float()
        if self.method == "batch":
            found = self._batch(start, before, noise)
            text = f"starting noise moved {self.rounds} times"
        else:
            found, losses = self._descend(start, before, noise)
            text = f"starting noise optimised, loss {losses[0]:.3g} to {losses[-1]:.3g} in {len(losses) - 1} iterations"
            if losses[-1] > self._target(start):
                text += f"; the target {self._target(start):.3g} was not reached, give it more iterations"
        if self.strength < 1:
            found = _same_norm(torch.lerp(noise, found, self.strength), noise)
        after = replace(before, noise=found).note(text)
        if self.method != "batch":
            return after
        delay = Static(0.0, self.strength, self.until)
        return replace(after, guidance=(*after.guidance, delay)).note(delay.line)

    def _batch(self, start: Start, before: Treatment, x: Tensor) -> Tensor:
        rho = self.rho * (x[0].numel() / SD1) ** 0.5
        with torch.no_grad():
            for _ in range(self.rounds):
                gap = start.gap(before, x)
                x = x - self.gamma * (start.gap(before, x + rho * _unit(gap)) - gap)
        return x

    def _descend(self, start: Start, before: Treatment, noise: Tensor) -> tuple[Tensor, list[float]]:
        """Return the optimised noise and the mean loss before each step and at the end."""
        official, sail = self.parity == "official", self.method == "sail"
        limit = (10 if sail else 1000) if self.iterations is None else self.iterations
        lr = (0.05 if sail else 0.01) if self.lr is None else self.lr
        target = self._target(start)
        losses: list[float] = []
        direction: Tensor | None = None
        with start.gradients():
            x = noise.detach().clone().requires_grad_(True)
            adam = torch.optim.AdamW([x], lr=lr, weight_decay=0.01 if official and not sail else 0.0)
            while True:
                if sail and (direction is None or not official):
                    direction = _unit(start.gap(before, x.detach()))
                norms = start.gap(before, x if direction is None else x + direction).flatten(1).norm(dim=1)
                each = norms + self.alpha * x.flatten(1).norm(dim=1) if sail else norms
                losses.append(float(each.detach().mean()))
                if not torch.isfinite(each).all():
                    raise NotFinite(FAILED)
                wanted = each.detach() > target
                if len(losses) > limit or not bool(wanted.any()):
                    return x.detach(), losses
                adam.zero_grad()
                each.sum().backward()
                held = x.detach().clone()
                adam.step()
                with torch.no_grad():  # each sample stops for itself
                    moved = x if official else _same_norm(x, noise)
                    x.copy_(torch.where(wanted.reshape(-1, *[1] * (x.ndim - 1)), moved, held))

    def _target(self, start: Start) -> float:
        size = math.sqrt(start.elements / SD1)
        if self.target is not None:
            return self.target
        if self.method == "sail":
            return 8.2 * size
        paper = 0.9 * size
        return paper if start.typical is None else min(paper, start.typical * math.sqrt(start.elements))


def _unit(gap: Tensor) -> Tensor:
    """Return each sample's direction."""
    norms = gap.flatten(1).norm(dim=1).clamp(min=1e-12)
    found: Tensor = gap / norms.reshape(-1, *[1] * (gap.ndim - 1))
    return found


def _same_norm(x: Tensor, noise: Tensor) -> Tensor:
    """Return each sample of x with the norm that it has in the noise."""
    scale = noise.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1)
    found: Tensor = x * scale.reshape(-1, *[1] * (x.ndim - 1))
    return found
