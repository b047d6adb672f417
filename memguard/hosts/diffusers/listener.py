"""Who gets the evidence of a pipeline run."""

from __future__ import annotations

from typing import Any, Protocol

from ...records import StepEvidence


class Listener(Protocol):
    """Who gets the evidence: a Run of a Guard, or a scan."""

    extra_rows: int
    count: int | None  # of steps, where late ones are scored

    def wants(self, step: int) -> bool:
        """Whether this model call is to be scored."""

    def learn(self, **facts: Any) -> None:
        """Take facts of the Report."""

    def observe(self, evidence: StepEvidence) -> None:
        """Take the evidence of one model call; may raise to end the run."""

    def unavailable(self, reason: str) -> None:
        """Take the reason why there is no score."""

    def insist(self) -> None:
        """End a run that must not go on without a score; called after ``unavailable``."""
