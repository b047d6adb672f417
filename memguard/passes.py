"""Runs of one job that belong together: a picture that several sampling runs paint (hires fix, upscaler, detailer).

A pass below full noise has no verdict of its own, and left alone it paints the memorized picture again that the first
pass was kept from. So it takes over the first one's verdict, which says whose it is, and under policy "mitigate" what
the first one went on with, as far as that acts at its own noise level.

A host keeps one ``Passes``. When a run begins: ``run.earlier = passes.before(...)``. Where the run is to be mitigated
(``run.to_mitigate``) and ``takes_over(run)``: ``repeat(run, start, redo)`` in the place of ``loop.mitigate``; without
any start, ``left_alone(run, why)``. When it has ended: ``passes.add(Pass.of(run, ...))``.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, replace

from .guard import Run
from .loop import Kept, Redo, redone
from .mitigations.auto import title
from .mitigations.base import Start, Treatment
from .mitigations.subset import Subset
from .records import VERDICTS, Attempt, Finding, Report

KEPT = 64  # runs; a treatment holds encoded prompts, a few hundred kilobytes
SAME = "{}, as in the first pass"
NOTHING = "nothing that the first pass went on with acts on this one, so it paints the prompt as it is"
UNTREATED = "the first pass was not mitigated, so there is nothing to repeat"


@dataclass(frozen=True)
class Pass:
    """One run that has ended.

    Attributes:
        report: of the run.
        job: what the run is a part of: a prompt id of ComfyUI, a generation of a WebUI; None where it is not known.
        prompt: key of what the model was conditioned on, equal for equal prompts; "" where it is not known.
        made: keys of what the run returned, by which a later run says what it starts from.
        kept: the mitigations that the run went on with; None without any.
        first: the pass whose verdict this one took over.
        owner: the user whose run it is, in hosts that know several.

    """

    report: Report
    job: str | None = None
    prompt: str = ""
    made: frozenset[str] = frozenset()
    kept: Kept | None = None
    first: Pass | None = None
    owner: str = ""

    @classmethod
    def of(cls, run: Run, job: str | None, prompt: str, made: Collection[str] = (), owner: str = "") -> Pass:
        """Return a run that has ended as a pass."""
        first = run.earlier if takes_over(run) else None
        return cls(run.report, job, prompt, frozenset(made), run.kept, first, owner)

    def taken_over(self) -> tuple[Finding, ...]:
        """Return the gravest finding as another run takes it over; none without a verdict."""
        known = [finding for finding in self.report.findings if finding.verdict in VERDICTS]
        gravest = max(known, key=lambda finding: VERDICTS.index(finding.verdict), default=None)
        return () if gravest is None else (replace(gravest, carried=self.report.run),)


class Passes:
    """The last runs of all jobs.

    Args:
        most: number of runs that are kept; the oldest go.

    """

    def __init__(self, most: int = KEPT) -> None:
        self._lock = threading.Lock()
        self._all: deque[Pass] = deque(maxlen=most)

    def add(self, one: Pass) -> None:
        """Keep a run that has ended."""
        with self._lock:
            self._all.append(one)

    def clear(self) -> None:
        """Forget all runs."""
        with self._lock:
            self._all.clear()

    def before(
        self, job: str | None, prompt: str, starts: Collection[str] = (), model: str = "", owner: str = ""
    ) -> Pass | None:
        """Return the judged pass that a new run continues; of several the gravest, of these the first.

        It is one of the same job with the same prompt; else a flagged one that made what the new run starts from; else,
        where the job has none (its first pass came from a cache), the newest run of the same prompt on the same model.

        Args:
            job: of the new run.
            prompt: its key; "" is like no other.
            starts: keys of what it starts from.
            model: fingerprint of its checkpoint; "" is like no other.
            owner: the user whose run it is.

        """
        with self._lock:
            rows = [each for each in self._all if each.owner == owner]
        same = [each for each in rows if prompt and (each.first or each).prompt == prompt]
        here = _judged([each for each in same if job is not None and each.job == job])
        begun = [each for each in _judged([each for each in rows if each.made & set(starts)]) if each.report.flagged]
        elsewhere = _judged([each for each in same if model and each.report.model == model])[-1:]
        return max(here or begun or elsewhere, key=_gravity, default=None)


def takes_over(run: Run) -> bool:
    """Whether the verdict of a run, once it has one, is that of an earlier pass."""
    return any(finding.carried for finding in run.report.findings)


def repeat(run: Run, start: Start, redo: Redo | None, same_prompt: bool = True) -> Treatment:
    """Return what a run goes on with that took over an earlier pass's verdict; its report tells it.

    Nothing is tried that the earlier pass did not go on with: below full noise there is no verdict to choose by.

    Args:
        run: flagged by the verdict of ``run.earlier``.
        start: its first step.
        redo: called once, if the treatment changes what is predicted; None scores nothing again.
        same_prompt: whether the earlier pass had this run's prompt; another one's optimised prompt is not taken.

    """
    earlier = run.earlier
    kept = None if earlier is None else earlier.kept
    if kept is None:
        left_alone(run, UNTREATED)
        return Treatment()
    subset = Subset(start, kept.images) if kept.images and len(start.prompt.text) == kept.batch else None
    narrow = start if subset is None else subset.start
    again = replace(narrow, first=kept.treatment if same_prompt else Treatment())
    name = SAME.format(title(kept.mitigations))
    attempt, treatment = redone(run, name, kept.mitigations, again, redo, subset)
    if not treatment.changes:
        attempt = replace(attempt, changes=(*attempt.changes, NOTHING))
    run.learn(attempts=(attempt,))
    if attempt.kept:
        run.kept = replace(kept, treatment=treatment)
        run.learn(scores_after=attempt.scores)
    run.publish()
    return treatment if subset is None else subset.widened(treatment)


def left_alone(run: Run, why: str) -> None:
    """Say of a run that took over a verdict why it goes on unmitigated."""
    run.learn(attempts=(Attempt("none", changes=(why,)),))
    run.publish()


def _judged(rows: list[Pass]) -> list[Pass]:
    """Return the passes with a verdict of their own that these runs are or have taken theirs from, each once."""
    found = {id(each.first or each): each.first or each for each in rows}
    return [each for each in found.values() if each.report.verdict in VERDICTS]


def _gravity(one: Pass) -> tuple[int, bool]:
    return VERDICTS.index(one.report.verdict), one.kept is not None
