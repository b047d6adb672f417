"""Settings of a guard; each sampling run that it watches is a Run.

A host calls, in this order: ``guard.begin(...)`` -> Run; per model call ``run.wants(step)`` and, if so,
``run.observe(evidence)``; where there can be no score ``run.unavailable(reason)``; at the end ``run.finish()``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .calibration import Profile, Sensitivity
from .detectors import get as get_detector
from .records import Policy, Reference, Report
from .run import MemorizationStop, Run
from .table import GUARD

__all__ = ["Guard", "MemorizationStop", "Run"]

Sink = Callable[[Report], None]


class Guard:
    """Settings that hold for many runs, and the report of the last one.

    Args:
        detectors: names of the detectors to ask.
        policy: "observe" (touch nothing), "warn" (also warn), "stop" (end a run that looks memorized) or "mitigate".
        mitigation: what policy "mitigate" applies to a run that looks memorized: None or "auto" (cheapest first, at
            most three attempts), a name, a ``memguard.mitigations.get(...)``, or up to three of these, tried in order.
        profile: what ordinary prompts score on this checkpoint; None looks for one by the model's fingerprint.
        steps: number of model calls to score.
        sensitivity: percentile of ordinary prompts above which a prompt is suspicious.
        reference: "negative" compares with the run's own negative prompt at no cost; "empty" with the empty prompt, for
            one more row per image at the scored steps.
        sink: called with the report as soon as the verdict is known (not if the run ends before), and when the run has
            ended.

    Raises:
        ValueError: for an unknown name or a number out of range.

    """

    def __init__(
        self,
        detectors: Sequence[str] = ("text_noise_norm",),
        policy: Policy = "observe",
        mitigation: Any = None,
        profile: Profile | None = None,
        steps: int = 1,
        sensitivity: float | Sensitivity = 99.0,
        reference: Reference = "negative",
        sink: Sink | None = None,
    ) -> None:
        for name, value in (("policy", policy), ("reference", reference), ("steps", steps)):
            GUARD[name].read(name, value)
        if policy != "mitigate" and mitigation is not None:
            raise ValueError(f"a mitigation was given and policy is {policy!r}; use policy mitigate to apply it")
        if not detectors:
            raise ValueError("detectors is empty; name at least one, for example text_noise_norm")
        self.detectors = (detectors,) if isinstance(detectors, str) else tuple(detectors)
        self._asked = [get_detector(name) for name in self.detectors]
        needs = frozenset().union(*(detector.NEEDS for detector in self._asked))
        self.attention = "attention" in needs  # whether a host must read cross-attention at the scored steps
        self.late = "late" in needs  # whether the last fifth of the steps is scored too
        self.ladder = None
        if policy == "mitigate":
            if steps != 1 or self.late:
                raise ValueError("policy mitigate decides at the first step; use steps 1 and no late detector")
            from .mitigations import get as get_mitigation  # most guards need none
            from .mitigations.auto import ladder

            self.ladder = ladder(mitigation, get_mitigation)
        self.mitigation = mitigation
        self.policy: Policy = policy
        self.profile = profile
        self.steps = steps
        self.sensitivity = sensitivity if isinstance(sensitivity, Sensitivity) else Sensitivity(sensitivity)
        self.reference: Reference = reference
        self.sink = sink
        self.report: Report | None = None

    def attach(self, pipe: Any) -> Any:
        """Watch a diffusers pipeline: a context manager that removes every hook again, also after an exception."""
        from . import attach  # the door to the hosts; the core imports none

        return attach(self, pipe)

    def begin(self, **facts: Any) -> Run:
        """Start a run. ``facts`` are fields of Report that the host knows already (host, model, seeds, ...)."""
        return Run(self, facts)
