"""One sampling run: collect evidence, ask the detectors, judge, act by policy, hand out one Report."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .calibration import judge, together
from .detectors.attention_entropy_late import is_late
from .detectors.text_noise_norm import gap_map
from .records import VERDICTS, Finding, Report, StepEvidence
from .troubles import careful, in_words
from .version import VERSION
from .wording import message

if TYPE_CHECKING:
    from .guard import Guard
    from .loop import Kept
    from .mitigations.base import Treatment
    from .mitigations.effect import Effect
    from .passes import Pass

log = logging.getLogger("memguard")
ENDED = "the run ended before its first step was complete"


class MemorizationStop(RuntimeError):
    """Raised by policy ``stop``; the message is meant for the person who pressed the button.

    Args:
        report: of the run.
        why: what is said in place of the report's sentence, where something else ends the run.

    """

    def __init__(self, report: Report, why: str = "") -> None:
        said = f"MemGuard: {why}" if why else message(report)
        super().__init__(f"{said}. Stopped before more steps were spent: change the prompt or the policy.")
        self.report = report


class Run:
    """The evidence and the outcome of one sampling run."""

    def __init__(self, guard: Guard, facts: dict[str, Any]) -> None:
        self.guard = guard
        self.started = time.perf_counter()
        self.evidence: list[StepEvidence] = []
        self.reason: str | None = None
        self.extra_rows = 0
        self._effect: Effect | None = None  # of the treatment that the run is under
        self.earlier: Pass | None = None  # a judged pass of the same job, whose verdict stands in for a missing one
        self.kept: Kept | None = None  # what the run went on with under policy "mitigate"
        self.count: int | None = None  # of steps, by the host's counter (memguard.steps); None: as in the report
        self._judged: int | None = None  # number of steps that the findings rest on
        self._closed = False
        self.report = Report(
            run=uuid.uuid4().hex,
            memguard_version=VERSION,
            policy=guard.policy,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **facts,
        )

    def wants(self, step: int) -> bool:
        """Whether a model call is still to be scored: with its index, or that of its step where late steps count."""
        if self.reason is not None or any(e.step == step for e in self.evidence):
            return False
        if self.guard.late and is_late(step, self.count or self.report.steps or 0):
            return True
        return step < self.guard.steps and self._judged is None

    def learn(self, **facts: Any) -> None:
        """Add facts that the host came to know during the run."""
        self.report = replace(self.report, **facts)

    def unavailable(self, reason: str) -> None:
        """Say why this run has no score. The first reason stays."""
        if self.reason is None and not self.evidence:
            self.reason = reason

    def observe(self, evidence: StepEvidence) -> None:
        """Take the evidence of one model call; after the last scored one, judge and act.

        Raises:
            MemorizationStop: under policy "stop", if the run looks memorized or something went wrong inside memguard.

        """
        self.evidence.append(evidence)
        # a run of fewer steps than were asked for must be judged before it is over, or "stop" could not stop it
        asked = min(self.guard.steps, evidence.num_steps or self.guard.steps)
        if len(self.evidence) < asked or self._judged is not None:
            return
        error = self._judge()
        if error is not None:
            self.noted(error)
            self._fail_closed(error)
        self.publish()
        if self.guard.policy == "stop" and (self.report.flagged or not self._scored):
            raise MemorizationStop(self.report)

    @property
    def to_mitigate(self) -> bool:
        """Whether the first step has shown that this run is to be mitigated, and nothing was tried yet."""
        return self.guard.policy == "mitigate" and self.report.flagged and not self.report.attempts

    def carry(self, treatment: Treatment) -> Effect:
        """Return what the host tells of a treatment as it carries it out; the report's actions are written from that.

        To be called before anything of the treatment is done.
        """
        from .mitigations.effect import Effect  # most guards need none

        self._effect = Effect(treatment, lambda lines: self.learn(actions=lines))
        self.learn(actions=())
        return self._effect

    def insist(self) -> None:
        """Under policy "stop", end a run that has no score although its model was called: it fails closed.

        To be called by a host after ``unavailable``, wherever an exception ends the run.

        Raises:
            MemorizationStop: with the reason why there is no score.

        """
        if self.guard.policy != "stop":
            return
        if self._judged != len(self.evidence):
            self._judge()
        if self.report.flagged or not self._scored:  # flagged by the verdict of an earlier pass
            self.publish()
            raise MemorizationStop(self.report)

    @property
    def _scored(self) -> bool:
        return any(finding.score is not None for finding in self.report.findings)

    def findings_of(self, evidence: StepEvidence) -> tuple[Finding, ...]:
        """Return what each detector says of a first step that was made again, or of some of its images."""
        return self._findings([evidence])[0]

    def settle(self) -> None:
        """Judge now what was observed so far, for a run that goes on without a score: an earlier pass may have one."""
        if self._judged is None and self._judge() is None:
            self.publish()

    def failed(self, error: Exception) -> None:
        """Record an error inside memguard. The picture goes on, except under policy "stop" before there is a score.

        Raises:
            MemorizationStop: under policy "stop", which fails closed; the error is its cause.

        """
        self.noted(error)
        self.unavailable(in_words(error))
        if not self._scored:
            self._fail_closed(error)

    def _fail_closed(self, error: Exception) -> None:
        if self.guard.policy == "stop":
            raise MemorizationStop(self.report, f"no score, because {in_words(error)}") from error

    @contextmanager
    def careful(self, *passing: type[BaseException]) -> Iterator[None]:
        """The one guard around every hook of ours: an error inside is this run's trouble, never the picture's.

        Args:
            passing: the host's own exceptions, which end a run because somebody pressed a button.

        Raises:
            MemorizationStop: that the policy asked for; under policy "stop" for any error before there is a score.

        """
        with careful(self.failed, MemorizationStop, *passing):
            yield

    def finish(self, **facts: Any) -> Report:
        """Close the run and return its report. Never raises, so that it can stand in a ``finally``; twice is once."""
        if self._closed:
            return self.report
        self._closed = True
        self.learn(**facts)
        if self._judged != len(self.evidence):
            error = self._judge()
            if error is not None:
                self.noted(error)
        if self._effect is not None:
            self.report = self._effect.settled(self.report)
        self.report = replace(self.report, seconds=time.perf_counter() - self.started, extra_rows=self.extra_rows)
        self.publish()
        return self.report

    def noted(self, error: Exception) -> None:
        """Record an error of ours that costs neither the picture nor the score."""
        log.warning("%s: %s", type(error).__name__, error, exc_info=error)
        self.report = replace(self.report, error=f"{type(error).__name__}: {error}")

    def _judge(self) -> Exception | None:
        """Ask every detector; return the last error of those that failed, whose findings say so."""
        self._judged = len(self.evidence)
        findings, broken = self._findings(self.evidence)
        gap = gap_map(self.evidence[-1]).cpu() if self.evidence and broken is None else None
        if self.earlier is not None and all(finding.verdict not in VERDICTS for finding in findings):
            findings += self.earlier.taken_over()
        self.report = replace(self.report, findings=findings, noise_gap_map=gap)
        return broken

    def _findings(self, evidence: Sequence[StepEvidence]) -> tuple[tuple[Finding, ...], Exception | None]:
        findings, broken = [], None
        for detector in self.guard._asked:
            try:
                finding = self._ask(detector, evidence)
            except Exception as error:
                broken = error
                status = in_words(error)
                finding = Finding(detector.NAME, status=status, reference=self.guard.reference, threshold_source="")
            findings.append(finding)
        return together(findings), broken

    def _ask(self, detector: Any, evidence: Sequence[StepEvidence]) -> Finding:
        if not evidence:
            reason = self.reason or ENDED
            return Finding(detector.NAME, status=reason, reference=self.guard.reference, threshold_source="")
        first = evidence[: self.guard.steps]
        finding = detector.detect(evidence if "late" in detector.NEEDS else first)
        return judge(finding, self.report, first, self.guard.profile, self.guard.sensitivity)

    def publish(self) -> None:
        """Show the report as it is now."""
        self.guard.report = self.report
        if self.guard.sink is None:
            return
        try:
            self.guard.sink(self.report)
        except Exception as error:
            # a screen that cannot be reached must not cost the picture
            log.warning("the report could not be shown: %s", error)
