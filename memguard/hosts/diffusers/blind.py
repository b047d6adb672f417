"""Runs whose score came from the scheduler: which rows carry the prompt is not known, but guidance can be changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...detectors.text_noise_norm import NAME as NORM
from ...guard import Run
from ...mitigations.base import Step, Treatment, Unsuitable, View
from ...mitigations.effect import Effect
from .pipes import model_calls
from .received import Joined

BLIND = "only guidance can be changed here: {}"


@dataclass(frozen=True)
class Blind:
    """In the place of ``mitigations.base.Start``: what a mitigation asks of the model's own calls is refused.

    Attributes:
        why: rows do not tell their prompt.
        run: of the guard, flagged.
        sigma: noise level of the call.

    """

    why: str
    run: Run
    sigma: float
    eos_padded = 0
    first = None

    @property
    def threshold(self) -> float | None:
        """See Start."""
        return self._scored("threshold")

    @property
    def typical(self) -> float | None:
        """See Start."""
        return self._scored("typical")

    def cancelled(self) -> None:
        """Nothing is computed, so nothing has to be stopped."""

    def _scored(self, name: str) -> float | None:
        found = next((each for each in self.run.report.findings if each.detector == NORM), None)
        return None if found is None else getattr(found, name)

    def __getattr__(self, name: str) -> Any:
        raise Unsuitable(BLIND.format(self.why))


class Guided:
    """The guidance of one such run.

    Args:
        pipe: the pipeline.
        why: rows do not tell their prompt.

    """

    def __init__(self, pipe: Any, why: str) -> None:
        self.pipe, self.why = pipe, why
        self.treatment = Treatment()
        self.effect = Effect(self.treatment)
        self.steps = 0

    def put(self, joined: Joined, received: Tensor) -> Tensor | None:
        """Return what the scheduler is to receive of a step; None leaves it."""
        here, count, scale = joined.here, model_calls(self.pipe), joined.found.scale
        prompt: Any = None  # nobody may ask: it is not known
        both = joined.cond, joined.uncond
        step = Step(self.steps, count, here.sigma, here.timestep, scale, self._refused, prompt, *both)
        before = joined.cond - joined.uncond
        gap, made = self.effect.guided(before, step), None
        if gap is not before:
            made = joined.put(received, gap, self.treatment.images)
            self.effect.written()
        self.steps += 1
        return made

    def _refused(self, view: View) -> Tensor:
        raise Unsuitable(BLIND.format(self.why))
