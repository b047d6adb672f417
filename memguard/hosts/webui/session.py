"""One press of Generate: its sampling passes, one run of the guard each, and what is said of them.

A batch is a pass, and so are the second pass of hires and each pass that another extension samples inside of a
generation (a detailer). The host's adapter turns its callbacks into ``StepEvidence``.

Part of the WebUI hosts.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...aside import aside
from ...guard import Guard, MemorizationStop
from ...passes import Pass as Past
from ...passes import Passes
from ...records import Report
from ...troubles import careful, in_words
from .explanation import When
from .places import Place, gravity
from .sampling import Pass

log = logging.getLogger("memguard")
SKIPPED = "the WebUI skipped the prediction without the prompt (skip early CFG, or negative guidance minimum sigma)"
NEVER = "a pass that never began"


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
        passes: of all jobs, so that a pass that has no verdict takes over that of an earlier one.

    Attributes:
        reports: of the passes that are over.
        places: of these passes in the generation.
        maps: of each of these passes, by name, float32 [B, h, w].
        pictures: of each of these passes: captions and data URLs, to be shown beside its report.
        overlays: captions and pictures, to be shown in the gallery.
        stopped: the message of policy "stop"; empty where nothing was stopped.
        trouble: why settings or the WebUI cannot be used, so that nothing is guarded; empty where they can.
        aside: the block around every evaluation of ours.
        batch: that is in progress, which is all that is known of a pass that never began.

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
        passes: Passes | None = None,
    ) -> None:
        self.guard, self.host, self.version, self._stop = guard, host, version, stop
        self.finished, self.enough, self.explain, self.notes = finished, enough, explain, notes
        self.reports: list[Report] = []
        self.places: list[Place] = []
        self.maps: list[dict[str, Tensor]] = []
        self.pictures: list[list[tuple[str, str]]] = []
        self.overlays: list[tuple[str, Any]] = []
        self.stopped = self.trouble = ""
        self.told = 0  # how many reports saved pictures have been told of
        self.now: Pass | None = None
        self.batch = Place()
        self.aside: Callable[[], AbstractContextManager[None]] = aside
        self._passes, self._job = passes or Passes(), uuid.uuid4().hex

    def begin(self, key: object, place: Place = Place(), **facts: Any) -> Pass:  # noqa: B008 it is frozen
        """Return the pass of a sampler; equal keys are one pass. Another one that was left open is closed."""
        if self.now is None or self.now.key != key:
            self.end()
            facts["notes"] = (*self.notes, *place.notes, *facts.get("notes", ()))
            run = self.guard.begin(host=self.host, host_version=self.version, **facts)
            starts = () if place.first else (self._made(place),)
            if place.painted:  # what starts from noise alone continues nothing
                run.earlier = self._passes.before(self._job, place.prompt, starts, run.report.model)
            self.now = Pass(self, key, run, place)
        return self.now

    def current(self) -> Pass:
        """Return the pass in progress, or what stands for one that has not begun: a report must say why."""
        return self.now or self.begin(NEVER, self.batch)

    def prepare(self, key: object) -> None:
        """Close the pass in progress where another is about to begin: an error on the way there is not its own."""
        if self.now is not None and self.now.key not in (key, NEVER):
            self.end()

    def end(self) -> None:
        """Close the pass in progress."""
        if self.now is not None:
            finished, self.now = self.now, None
            if finished.calls == 0 and finished.missing:
                finished.run.unavailable(finished.missing)
            report = finished.finish()
            place = finished.place
            self._passes.add(Past.of(finished.run, self._job, place.prompt, (self._made(place),)))
            note = self.finished(report)
            self.reports.append(replace(report, notes=(*report.notes, note)) if note else report)
            self.places.append(place)
            self.maps.append(finished.maps)
            self.pictures.append([])

    @contextmanager
    def careful(self, over: bool = False) -> Iterator[None]:
        """The guard around every hook of ours: an error costs no picture, except under policy "stop".

        Args:
            over: whether the sampling is over, so that an error is of the passes that are closed and of none to come.

        """
        try:
            with careful(self.finished_badly if over else self.broke, MemorizationStop):
                yield
        except MemorizationStop as ended:
            self.stop(str(ended))

    def finished_badly(self, error: Exception) -> None:
        """Take an error of ours where the sampling is over: passes that are closed have their scores.

        Raises:
            MemorizationStop: under policy "stop", where a pass is left open or there is none.

        """
        if self.now is not None or not self.reports:
            self.broke(error)
            return
        log.warning("%s: %s", type(error).__name__, error, exc_info=error)
        last = self.reports[-1]
        self.reports[-1] = replace(last, notes=(*last.notes, in_words(error)))

    def broke(self, error: Exception) -> None:
        """Take an error of ours, which is of the pass in progress or of one that is about to begin.

        Raises:
            MemorizationStop: under policy "stop".

        """
        try:
            now = self.current()
        except Exception as worse:
            log.warning("%s: %s", type(error).__name__, error, exc_info=worse)
            if self.guard.policy == "stop":
                self.stop(f"MemGuard: no score, because {in_words(error)}")
            return
        now.run.failed(error)

    def stop(self, text: str) -> None:
        """End the generation, by policy "stop"."""
        self.stopped = self.stopped or text
        self._stop()

    def refuse(self, trouble: str, **facts: Any) -> None:
        """Say in a report why nothing is guarded: settings, or a WebUI, that cannot be used."""
        self.trouble = trouble
        self.begin(NEVER, **facts).missing = trouble
        self.end()

    def _made(self, place: Place) -> str:
        return f"{self._job}/{place.batch}"

    @property
    def gravest(self) -> Report | None:
        """The report to show first: that of the gravest verdict, of equal ones the first."""
        return max(self.reports, key=gravity, default=None)

    @property
    def gravity(self) -> int:
        """How grave the gravest verdict is, 0 for none."""
        report = self.gravest
        return 0 if report is None else gravity(report)
