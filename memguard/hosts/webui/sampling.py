"""One sampling pass: its calls, one run of the guard, the noise gap of every call, its words and maps.

Part of the WebUI hosts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor

from ...guard import MemorizationStop, Run
from ...records import Report, StepEvidence
from ...steps import Unlisted
from ...troubles import in_words
from ..curve import Curve
from .explanation import Asked, Explanation, When, maps
from .places import Place
from .reading import SEVERAL, Reader

log = logging.getLogger("memguard")

UNSEEN = "the sampler asked the model, and this WebUI told MemGuard of none of its calls"


class Press(Protocol):
    """One press of Generate, as its passes know it: ``session.Session``."""

    explain: When
    aside: Callable[[], AbstractContextManager[None]]
    enough: Callable[[], None]

    def stop(self, text: str) -> None:
        """End the generation, by policy "stop"."""


class Pass:
    """One sampling pass and its run.

    Attributes:
        place: in the generation.
        calls: of the model so far.
        missing: why there would be no call at all, where that is known.
        explanation: of the run.
        maps: of the run, once it is finished.

    """

    def __init__(self, session: Press, key: object, run: Run, place: Place) -> None:
        self.session, self.key, self.run, self.place = session, key, run, place
        self.calls = 0
        self.missing = ""
        self.explanation = Explanation(session.explain)
        self.reader: Reader | None = None
        self.maps: dict[str, Tensor] = {}
        self._curve = Curve()
        self._gap: Tensor | None = None  # of the last call, [B, C, h, w]
        self._steps: Unlisted | None = None  # where late steps count
        self._now: int | None = None  # the step that the call to come belongs to

    def again(self) -> None:
        """The sampler starts once more, from other noise."""
        self.calls, self._curve, self._steps = 0, Curve(), None
        if self.reader is not None:
            self.reader.tally = None  # maps are of the picture that is made

    def arm(
        self, images: int, tokens: int, total: int | None = None, alone: bool = True, level: float | None = None
    ) -> None:
        """Read attention at the model call to come, where somebody asks for it.

        Args:
            images: rows that carry the prompt, one for each image.
            tokens: columns of the prompt.
            total: number of calls that the sampler makes, where it is known; some make several in each step.
            alone: whether each image has one prompt.
            level: noise level of the call.

        """
        self._now = self._step(level, total)
        if self.reader is None:
            return
        told = self.explanation
        explained = told.taken or told.when == "always" or (told.when == "flagged" and self.calls == 0)
        if not explained and not (self.run.guard.attention and self.run.wants(self._now)):
            return
        if alone:
            self.reader.arm(images, tokens, explained)
        else:
            self.reader.skip(SEVERAL)

    def read(self, summary: Callable[[], Tensor | None]) -> dict[str, Any]:
        """Return what StepEvidence holds of the call's attention, if a detector asks for it."""
        if not self.run.guard.attention:
            return {}
        assert self.reader is not None  # there is one where a detector asks for it
        return self.reader.evidence(summary() if self.run.guard.late else None)

    def look(self, evidence: Callable[[int], StepEvidence | str]) -> StepEvidence | None:
        """Take one model call. Nothing that goes wrong here costs the picture, except under policy "stop".

        Args:
            evidence: of the step with this number, or why there is none; asked for scored calls only.

        Returns:
            the evidence of a scored call.

        """
        number = self.calls if self._now is None else self._now
        self.calls, self._now = self.calls + 1, None
        if not self.run.wants(number):
            return None
        found: StepEvidence | str | None = None
        with self.careful():
            with self.session.aside():
                found = evidence(number)
            if isinstance(found, str):
                self.run.unavailable(found)
                self.run.insist()
                self.run.settle()
            else:
                self.run.observe(found)
        return found if isinstance(found, StepEvidence) else None

    @contextmanager
    def careful(self) -> Iterator[None]:
        """The guard around what is done at a model call; policy "stop" ends the generation as the host ends one."""
        try:
            with self.run.careful():
                yield
        except MemorizationStop as ended:
            self.session.stop(str(ended))

    def unseen(self) -> None:
        """The sampler has asked the model; where nobody told us of a call there will be no score."""
        if self.calls == 0 and self.run.reason is None:
            self.missing = self.missing or UNSEEN
            with self.careful():
                self.run.unavailable(self.missing)
                self.run.insist()

    def follow(self, sigma: float, gap: Tensor) -> None:
        """Add a call to the curve.

        Args:
            sigma: noise level.
            gap: noise gap of the call, [B, C, h, w], in units of epsilon; zero where a prediction was left out.

        """
        self._gap = gap
        self._curve.add(gap.new_tensor([sigma]), gap, gap.new_zeros(()), None)

    def explain(self, found: StepEvidence | None, ask: Callable[[], Asked]) -> None:
        """Explain the call that was just scored, if the run is to be explained."""
        if found is None or not self.explanation.wants(self.run.report.flagged):
            return
        try:
            masses = {} if self.reader is None else self.reader.masses
            with self.session.aside():
                self.explanation.take(ask(), found, masses)
        except Exception as error:
            self._unexplained(error)

    def scored(self) -> None:
        """End a check, once nothing more is wanted."""
        if not self.run.wants(self.calls):
            self.session.enough()

    def finish(self) -> Report:
        """Close the run, and name its words; the sampler must be done."""
        run = self.run
        run.extra_rows += self.explanation.rows
        try:
            run.learn(curve=tuple(point for point in self._curve.points() if point[1] > 0))
            with self.session.aside():
                found = self.explanation.words()
            run.learn(attribution=found)
            if found is not None and self._gap is not None:
                self.maps = {"noise_gap": self._gap.float().pow(2).mean(1).cpu()}
                if self.reader is not None and self.reader.tally is not None:
                    tally = self.reader.tally
                    self.maps |= maps(tally, found.spans)
                    if tally.left:
                        line = f"{len(tally.left)} layers are no scaled copy of the picture, and stand in no map"
                        run.learn(notes=(*run.report.notes, line))
                run.learn(maps=tuple(self.maps))
        except Exception as error:
            self._unexplained(error)
        report = run.finish()
        ending = self.maps.get("noise_gap")
        return report if ending is None else replace(report, noise_gap_map=ending)

    def _step(self, level: float | None, total: int | None) -> int:
        """Return the step that the next call belongs to: its number, unless late steps count."""
        if not self.run.guard.late or level is None:
            return self.calls
        if self._steps is None:
            self._steps = Unlisted(self.run.report.steps or 0, total or 0)
            self.run.count = self._steps.count
        return self._steps.of(level)

    def _unexplained(self, error: Exception) -> None:
        log.warning("%s: %s", type(error).__name__, error, exc_info=error)
        self.run.learn(notes=(*self.run.report.notes, f"no words or maps, because {in_words(error)}"))
