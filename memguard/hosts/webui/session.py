"""One press of Generate: its sampling passes, one run of the guard each, and what is said of them.

A batch is a pass, and so is the second pass of hires. The host's adapter turns its callbacks into ``StepEvidence``.

Part of the WebUI hosts; may import: memguard's core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ...guard import Guard, MemorizationStop, Run
from ...records import Report, StepEvidence
from ...wording import message

SKIPPED = "the WebUI skipped the prediction without the prompt (skip early CFG, or negative guidance minimum sigma)"


class Session:
    """The passes of one press of Generate.

    Args:
        guard: settings.
        host: name of the host.
        version: of the host.
        stop: called where policy "stop" ends the generation.
        finished: called with the report of each pass that is over; returns a note for it or None.
        enough: called when a pass has a verdict or a reason; a check before generating ends here.

    Attributes:
        reports: of the passes that are over.
        stopped: the message of policy "stop"; empty where nothing was stopped.

    """

    def __init__(
        self,
        guard: Guard,
        host: str,
        version: str,
        stop: Callable[[], None],
        finished: Callable[[Report], str | None] = lambda report: None,
        enough: Callable[[], None] = lambda: None,
    ) -> None:
        self.guard, self.host, self.version, self._stop = guard, host, version, stop
        self.finished, self.enough = finished, enough
        self.reports: list[Report] = []
        self.stopped = ""
        self.told = 0  # how many reports saved pictures have been told of
        self.now: Pass | None = None

    def begin(self, key: object, **facts: Any) -> Pass:
        """Return the pass of a sampler; equal keys are one pass. Another one that was left open is closed."""
        if self.now is None or self.now.key != key:
            self.end()
            run = self.guard.begin(host=self.host, host_version=self.version, **facts)
            self.now = Pass(self, key, run)
        return self.now

    def end(self) -> None:
        """Close the pass in progress."""
        if self.now is not None:
            finished, self.now = self.now, None
            if finished.calls == 0:
                finished.run.unavailable("the run ended before the model's first prediction")
            report = finished.run.finish()
            note = self.finished(report)
            self.reports.append(replace(report, notes=(*report.notes, note)) if note else report)

    def stop(self, text: str) -> None:
        """End the generation, by policy "stop"."""
        self.stopped = text
        self._stop()

    @property
    def gravest(self) -> Report | None:
        """The report to show first: that of the gravest verdict, of equal ones the first."""
        order = ("unknown", "ordinary", "suspicious", "memorized")
        return max(self.reports, key=lambda report: order.index(report.verdict), default=None)


class Pass:
    """One sampling pass and its run."""

    def __init__(self, session: Session, key: object, run: Run) -> None:
        self.session, self.key, self.run = session, key, run
        self.calls = 0

    def look(self, evidence: Callable[[int], StepEvidence | str]) -> None:
        """Take one model call. Nothing that goes wrong here costs the picture, except under policy "stop".

        Args:
            evidence: of the call with this number, or why there is none; asked for scored calls only.

        """
        number, self.calls = self.calls, self.calls + 1
        if not self.run.wants(number):
            return
        try:
            found = evidence(number)
            if isinstance(found, str):
                self.run.unavailable(found)
            else:
                self.run.observe(found)
        except MemorizationStop as ended:
            self.session.stop(str(ended))
        except Exception as error:
            try:
                self.run.failed(error)
            except Exception:  # policy "stop" fails closed
                self.session.stop(f"MemGuard: stopped, because of an error: {error}")
        if not self.run.wants(self.calls):
            self.session.enough()


def infotext(reports: Sequence[Report], images: int) -> dict[str, Any]:
    """Return what a batch's pictures say of their own scores: the text of each image, or one of all.

    Args:
        reports: of the passes that made the batch, the first one decides.
        images: in the batch.

    """
    if not reports:
        return {}
    report = reports[0]
    scored = next((finding for finding in report.findings if len(finding.scores) == images), None)
    told = {"MemGuard verdict": message(report).removeprefix("MemGuard: ")}
    return told if scored is None else told | {"MemGuard score": [f"{score:.4g}" for score in scored.scores]}
