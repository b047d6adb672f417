"""The closed loop of policy ``mitigate``: try, score the first step again, keep what helped, escalate, report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from .distance import gravest, helped, ordinary, standing
from .guard import Run
from .mitigations.auto import ATTEMPTS, title
from .mitigations.base import Mitigation, Start, Treatment
from .mitigations.subset import Subset
from .records import FLAGGED, Attempt, Finding, StepEvidence, Verdict
from .troubles import UNFORESEEN, Told, in_words

log = logging.getLogger("memguard")

LATER = "acts after the first step, so the first step's score does not change by it"
UNSEEN = "{} could not be asked again: {}"
AGAIN = "the first step could not be made again: {}"
UNDONE = "an error inside MemGuard ended the mitigation {}; the host's log tells more"
BROKEN = (Told, ValueError, ArithmeticError, RuntimeError, MemoryError)  # not what ends a run: a pressed button

Redo = Callable[[Treatment], StepEvidence]  # makes the first model call again, under a treatment


@dataclass(frozen=True)
class Kept:
    """What a run went on with.

    Attributes:
        mitigations: in the order in which they were applied.
        treatment: what they came to, of ``images`` alone where these are given.
        images: numbers of the images that were treated, where others of the batch were left alone.
        batch: number of images of the run.

    """

    mitigations: tuple[Mitigation, ...]
    treatment: Treatment
    images: tuple[int, ...] = ()
    batch: int = 1


def mitigate(run: Run, start: Start, redo: Redo) -> Treatment:
    """Return the treatment that a flagged run goes on with; the report tells what was tried.

    What is done is told by the host, once it is: ``run.carry(treatment)``.

    Treatments add up. One that does not bring the run nearer to ordinary prompts, by the detectors that flagged it, is
    taken back; one that these detectors cannot be asked about is kept, and the report says so. What goes wrong in one
    attempt is noted, and the next one is tried: the picture is never lost. Where a batch holds several prompts, those
    that look memorized are treated and the others left alone.

    Args:
        run: flagged at its first step.
        start: that step.
        redo: called once for each attempt that changes what is predicted.

    """
    assert run.guard.ladder is not None
    findings, subset = run.report.findings, None
    images = _memorized(run)
    if images:
        subset = Subset(start, images)
        start = subset.start
        findings = run.findings_of(_part(run.evidence[0], subset))
        numbers = ", ".join(str(image + 1) for image in images)
        run.learn(notes=(*run.report.notes, f"only images {numbers} look memorized; the others were left alone"))
    best, so_far = Treatment(), standing(findings)
    done: tuple[Mitigation, ...] = ()
    flagged = [name for name, finding in so_far.items() if finding.verdict in FLAGGED]
    first = gravest(findings)
    assert first is not None
    run.learn(scores_before=first.scores)
    for rung in run.guard.ladder(start)[:ATTEMPTS]:
        began, rows = time.perf_counter(), run.extra_rows
        treatment, changes = _apply(rung, start, best)
        attempt = Attempt(title(rung), changes)
        evidence, after = None, {}
        try:
            if not treatment.predicts_as(best):
                evidence = redo(treatment if subset is None else subset.widened(treatment))
        except BROKEN as error:
            attempt = replace(attempt, changes=(*changes, AGAIN.format(in_words(error))))
            treatment = best
        if evidence is not None:
            found = run.findings_of(_part(evidence, subset))
            after = standing(found)
            attempt = _scored(attempt, found, first.detector, flagged)
        kept = treatment is not best and helped(so_far, after, flagged) is not False
        if kept and evidence is None:
            attempt = replace(attempt, changes=(*attempt.changes, LATER))
        if kept:
            best, so_far = treatment, {**so_far, **after}
            done = (*done, *rung)
        spent = run.extra_rows - rows
        attempt = replace(attempt, kept=kept, extra_rows=spent, seconds=time.perf_counter() - began)
        run.learn(attempts=(*run.report.attempts, attempt))
        if kept:
            run.learn(scores_after=attempt.scores or run.report.scores_after)
        if after and ordinary(after, flagged):
            break
    if done:
        run.kept = Kept(done, best, tuple(images), len(run.evidence[0].noise_cond))
    run.publish()
    return best if subset is None else subset.widened(best)


def redone(
    run: Run, name: str, rung: Sequence[Mitigation], start: Start, redo: Redo | None, subset: Subset | None = None
) -> tuple[Attempt, Treatment]:
    """Return one attempt that is kept whatever it scores, and its treatment.

    Args:
        run: that is mitigated.
        name: of the attempt, in words.
        rung: mitigations, applied one on top of the other.
        start: of the run, narrowed by ``subset`` where there is one.
        redo: called once, if the treatment changes what is predicted; None scores nothing again.
        subset: widens treatments to the batch.

    """
    began, rows = time.perf_counter(), run.extra_rows
    treatment, changes = _apply(rung, start, Treatment())
    scores: tuple[float, ...] = ()
    verdict: Verdict = "unknown"
    if redo is not None and not treatment.predicts_as(Treatment()):
        try:
            again = _part(redo(treatment if subset is None else subset.widened(treatment)), subset)
            found = next((f for f in run.findings_of(again) if f.scores), None)
            scores, verdict = ((), "unknown") if found is None else (found.scores, found.verdict)
        except BROKEN as error:
            log.warning("%s: %s", name, error, exc_info=True)
            changes, treatment = (*changes, AGAIN.format(in_words(error))), Treatment()
    spent, seconds = run.extra_rows - rows, time.perf_counter() - began
    return Attempt(name, changes, scores, verdict, treatment.changes, spent, seconds), treatment


def undone(run: Run, calls: int, error: Exception | None = None) -> None:
    """Tell in the report that a run goes on without its treatment, because a hook of ours broke.

    Args:
        run: that was treated.
        calls: model calls that were made under the treatment; 0 where the run is as if there had been none.
        error: that ended it, where it may have words for the user.

    """
    when = f"after {calls} model calls" if calls else "before it began"
    if not calls:
        run.carry(Treatment())
        run.kept = None
        attempts = tuple(replace(each, kept=False) for each in run.report.attempts)
        run.learn(attempts=attempts, scores_after=())
    why = UNFORESEEN if error is None else in_words(error)
    line = UNDONE.format(when) if why == UNFORESEEN else f"the mitigation ended {when}: {why}"
    run.learn(notes=(*run.report.notes, line))


def _scored(attempt: Attempt, found: Sequence[Finding], by: str, flagged: Sequence[str]) -> Attempt:
    """Return an attempt with what was found under it; the score is that of one detector, ``by``."""
    known = standing(found)
    worst = gravest(found)
    lost = [UNSEEN.format(each.detector, each.status) for each in found if each.detector in flagged and not each.scores]
    attempt = replace(attempt, changes=(*attempt.changes, *lost))
    return (
        attempt
        if worst is None or by not in known
        else replace(attempt, scores=known[by].scores, verdict=worst.verdict)
    )


def _memorized(run: Run) -> list[int]:
    """Return the images of the prompts that look memorized, where the batch holds others too; else none."""
    evidence = run.evidence[0]
    prompts = torch.tensor(evidence.prompts)
    grave = []
    for number in sorted(set(evidence.prompts)):
        images = torch.nonzero(prompts == number).flatten()
        found = gravest(run.findings_of(evidence.rows(images.to(evidence.noise_cond.device))))
        grave += images.tolist() if found is not None and found.verdict in FLAGGED else []
    return sorted(grave) if len(grave) < len(prompts) else []


def _part(evidence: StepEvidence, subset: Subset | None) -> StepEvidence:
    return evidence if subset is None else evidence.rows(subset.images.to(evidence.noise_cond.device))


def _apply(rung: Sequence[Mitigation], start: Start, before: Treatment) -> tuple[Treatment, tuple[str, ...]]:
    """Return the treatment with a rung on top, and a line for each of its mitigations."""
    treatment = before
    lines: list[str] = []
    for each in rung:
        try:
            start.cancelled()
            after = each.treat(start, treatment)
            lines += after.notes[len(treatment.notes) :]
            treatment = after
        except BROKEN as error:
            log.warning("%s: %s", each.TITLE, error, exc_info=True)
            lines.append(f"{each.TITLE} was left out: {in_words(error)}")
    return treatment, tuple(lines)
