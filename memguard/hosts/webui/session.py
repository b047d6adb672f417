"""One press of Generate: its sampling passes, one run of the guard each, and what is said of them.

A batch is a pass, and so is the second pass of hires. The host's adapter turns its callbacks into ``StepEvidence``.

Part of the WebUI hosts; may import: memguard's core.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...guard import Guard
from ...records import VERDICTS, Report
from ...wording import message
from .explanation import When
from .sampling import FAILED, Pass

log = logging.getLogger("memguard")
GRAVITY = ("unknown", *VERDICTS)
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
        explain: which runs to explain.
        notes: for every report.

    Attributes:
        reports: of the passes that are over.
        maps: of each of these passes, by name, float32 [B, h, w].
        pictures: of each of these passes: captions and data URLs, to be shown beside its report.
        overlays: captions and pictures, to be shown in the gallery.
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
        explain: When = "never",
        notes: tuple[str, ...] = (),
    ) -> None:
        self.guard, self.host, self.version, self._stop = guard, host, version, stop
        self.finished, self.enough, self.explain, self.notes = finished, enough, explain, notes
        self.reports: list[Report] = []
        self.maps: list[dict[str, Tensor]] = []
        self.pictures: list[list[tuple[str, str]]] = []
        self.overlays: list[tuple[str, Any]] = []
        self.stopped = ""
        self.told = 0  # how many reports saved pictures have been told of
        self.now: Pass | None = None

    def begin(self, key: object, **facts: Any) -> Pass:
        """Return the pass of a sampler; equal keys are one pass. Another one that was left open is closed."""
        if self.now is None or self.now.key != key:
            self.end()
            facts["notes"] = (*self.notes, *facts.get("notes", ()))
            run = self.guard.begin(host=self.host, host_version=self.version, **facts)
            self.now = Pass(self, key, run)
        return self.now

    def end(self) -> None:
        """Close the pass in progress."""
        if self.now is not None:
            finished, self.now = self.now, None
            if finished.calls == 0:
                finished.run.unavailable(finished.missing)
            report = finished.finish()
            note = self.finished(report)
            self.reports.append(replace(report, notes=(*report.notes, note)) if note else report)
            self.maps.append(finished.maps)
            self.pictures.append([])

    def broke(self, error: Exception) -> None:
        """Take an error of ours outside of a model call. The picture goes on, except under policy "stop"."""
        log.warning("%s: %s", type(error).__name__, error)
        now = self.now or self.begin("a pass that never began")  # the report must say why there is no score
        with suppress(Exception):  # under policy "stop" the error comes back, and is said below
            now.run.failed(error)
        if self.guard.policy == "stop":
            self.stop(FAILED.format(error))

    def stop(self, text: str) -> None:
        """End the generation, by policy "stop"."""
        self.stopped = text
        self._stop()

    @property
    def gravest(self) -> Report | None:
        """The report to show first: that of the gravest verdict, of equal ones the first."""
        return max(self.reports, key=lambda report: GRAVITY.index(report.verdict), default=None)

    @property
    def gravity(self) -> int:
        """How grave the gravest verdict is, 0 for none."""
        report = self.gravest
        return 0 if report is None else GRAVITY.index(report.verdict)


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
