"""A meter of memorization for a training in progress: held-out loss minus training loss, by noise level.

While a model generalises, pictures that it was trained on and others of the same kind cost it the same loss. What it
memorizes it predicts better, at middle noise levels first, also while the held-out loss is still flat ("Where rectified
flows leak", arXiv 2606.07271: the gap over t is bell-shaped and grows with training). The loss curve of the training
alone tells nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..aside import aside
from ..troubles import Refused
from .log import Log

TIMESTEPS = (100, 300, 500, 700, 900)  # of a schedule of 1000
Loss = Callable[[Any, int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Gap:
    """What was measured at one noise level.

    Attributes:
        timestep: of the schedule.
        trained: mean loss of training pictures.
        held: mean loss of held-out pictures.
        error: standard error of their difference, over pictures; NaN where a side has one picture.

    """

    timestep: int
    trained: float
    held: float
    error: float

    @property
    def gap(self) -> float:
        """Held-out loss minus training loss; above 0 the training pictures are predicted better."""
        return self.held - self.trained


class Meter:
    """Measures the gap at several noise levels, each time on the same noise.

    Args:
        loss: of a batch, a timestep and a generator for its noise: the losses of the samples, not reduced, [B] or
            [B, ...]. It is called without gradient.
        trained: batches of pictures that are trained on.
        held: batches of pictures of the same kind that are not; without near duplicates of the others.
        timesteps: that are measured.
        seed: of the noise.
        log: takes the gaps; None keeps no log.

    Raises:
        Refused: if there are no batches on a side, or no timesteps.

    """

    def __init__(
        self,
        loss: Loss,
        trained: Sequence[Any],
        held: Sequence[Any],
        timesteps: Sequence[int] = TIMESTEPS,
        seed: int = 0,
        log: Log | None = None,
    ) -> None:
        if not len(trained) or not len(held):
            raise Refused("the meter needs pictures that are trained on and others that are held out")
        if not len(timesteps):
            raise Refused("the meter needs timesteps to measure at")
        self.loss, self.trained, self.held = loss, trained, held
        self.timesteps, self.seed, self.log = tuple(timesteps), seed, log

    def measure(self, step: int, *used: Any) -> tuple[Gap, ...]:
        """Return the gap at each timestep.

        Args:
            step: of the training, for the log.
            used: networks and devices whose random generators are to be left alone, as for ``memguard.aside``; networks
                are in evaluation mode meanwhile, so that dropout adds no noise.

        Raises:
            Refused: if ``loss`` returns one number for a batch.

        """
        found = []
        with torch.no_grad(), aside(*used), _evaluating(used):
            for timestep in self.timesteps:
                sides = [self._losses(batches, timestep) for batches in (self.trained, self.held)]
                error = math.sqrt(sum(_variance(each) / len(each) for each in sides))
                found.append(Gap(timestep, float(sides[0].mean()), float(sides[1].mean()), error))
        if self.log is not None:
            for each in found:
                self.log.add(step, {f"memorization/gap at {each.timestep}": each.gap})
            # not fsum, which raises where one level is infinite and another minus infinite
            self.log.add(step, {"memorization/gap": sum(each.gap for each in found) / len(found)})
        return tuple(found)

    def _losses(self, batches: Sequence[Any], timestep: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.cat([_means(self.loss(batch, timestep, generator)) for batch in batches])


@contextmanager
def _evaluating(used: Sequence[Any]) -> Iterator[None]:
    parts = {part: part.training for each in used if isinstance(each, nn.Module) for part in each.modules()}
    try:
        for part in parts:
            part.training = False  # of each part: some may be frozen in evaluation mode while others are trained
        yield
    finally:
        for part, training in parts.items():
            part.training = training


def _means(losses: Any) -> Tensor:
    """Return the loss of each sample, [B]."""
    if not isinstance(losses, Tensor) or losses.ndim == 0:
        what = "one number for a batch" if isinstance(losses, Tensor | float) else f"a {type(losses).__name__}"
        raise Refused(f"the meter's loss returned {what}; return the loss of each sample: reduction='none'")
    losses = losses.detach().float()
    found: Tensor = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
    return found


def _variance(values: Tensor) -> float:
    return float(values.double().var()) if len(values) > 1 else math.nan
