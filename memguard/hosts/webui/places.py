"""Which pass of a generation it is, and what saved pictures say of the passes that made them.

Part of the WebUI hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...records import VERDICTS, Report
from ...wording import message

Kind = Literal["", "hires", "refiner", "inner"]
NAMES: dict[Kind, str] = {
    "": "",
    "hires": "second pass of hires",
    "refiner": "pass of the refiner",
    "inner": "pass of another extension",
}
FIRST = "first pass"
STARTS: dict[Kind, str] = {
    "": "",
    "hires": "the second pass of hires starts from a picture",
    "refiner": "the refiner goes on with a picture of the first pass",
    "inner": "another extension sampled this pass inside of the generation",
}
VERDICT, SCORE = "MemGuard verdict", "MemGuard score"  # keys of the infotext


@dataclass(frozen=True)
class Place:
    """A pass of a generation.

    Attributes:
        batch: its number, from 0.
        batches: how many there are.
        kind: what the pass is beside the first one of its batch.
        prompt: key of its prompts, equal for equal ones.
        painted: whether it starts from a picture, which an earlier pass may have made, and not from noise alone.

    """

    batch: int = 0
    batches: int = 1
    kind: Kind = ""
    prompt: str = ""
    painted: bool = False

    @property
    def first(self) -> bool:
        """Whether it is the first pass of its batch."""
        return not self.kind

    @property
    def name(self) -> str:
        """The pass in words; "" for the only one."""
        batch = f"batch {self.batch + 1} of {self.batches}" if self.batches > 1 else ""
        return ", ".join(filter(None, (batch, NAMES[self.kind])))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report says of it."""
        batch = f"batch {self.batch + 1} of {self.batches}" if self.batches > 1 else ""
        return tuple(filter(None, (batch, STARTS[self.kind])))


def infotext(reports: Sequence[Report], images: int, places: Sequence[Place] = ()) -> dict[str, Any]:
    """Return what a batch's pictures say of their own scores: the text of each image, or one of all.

    Args:
        reports: of the passes that made the batch, in their order.
        images: in the batch.
        places: of these passes.

    """
    if not reports:
        return {}
    said = [message(reports[0]).removeprefix("MemGuard: ")]
    said += [
        f"{NAMES[place.kind] or FIRST}: {_short(report)}" for report, place in zip(reports[1:], places[1:], strict=True)
    ]
    told = {VERDICT: "; ".join(said)}
    own = [finding for finding in reports[0].findings if not finding.carried]
    scored = next((finding for finding in own if len(finding.scores) == images), None)
    return told if scored is None else told | {SCORE: [f"{score:.4g}" for score in scored.scores]}


def stopped_by(told: dict[str, Any], stopped: str) -> dict[str, Any]:
    """Return a batch's text with what stopped the generation, where it does not say so already.

    Args:
        told: of ``infotext``.
        stopped: the message of policy "stop"; empty where nothing was stopped.

    """
    why, known = stopped.removeprefix("MemGuard: "), told.get(VERDICT, "")
    if not why or why.split(". Stopped")[0] in known:
        return told
    return told | {VERDICT: "; ".join(filter(None, (known, why)))}


def of_all(reports: Sequence[Report], places: Sequence[Place]) -> str:
    """Return the verdict of the pass with the gravest one, and which it is; "" without any report."""
    known = list(zip(reports, places, strict=True))
    if not known:
        return ""
    report, place = max(known, key=lambda each: gravity(each[0]))
    name = f"{place.name}: " if len(known) > 1 and place.name else ""
    return f"{name}{_short(report)}"


def gravity(report: Report) -> int:
    """Return how grave a report's verdict is, 0 for none."""
    return VERDICTS.index(report.verdict) + 1 if report.verdict in VERDICTS else 0


def _short(report: Report) -> str:
    return message(report).removeprefix("MemGuard: ")
