"""What a treatment has really changed in a run: its lines are told once a tensor of the run differs for them.

A treatment says what is meant. Whether it comes to that is another matter: a hook may break, a pipeline may have no
place for guidance, a schedule may begin below the step until which guidance was to wait. So a report's ``actions`` are
not what was decided but what a host has told an ``Effect``, part by part, after the tensor was changed:

    effect = run.carry(treatment)              # Effect(treatment) where no guard watches
    Plan(edits, ..., effect=effect)            # edits tell by themselves, once a layer's output was made with them
    effect.changed("prompt", before, after)    # also "reference" and "noise": once the new tensor is in its place
    gap = effect.guided(gap, step)             # all guidance, one after the other
    ...                                        # the gap is written into the prediction
    effect.written()

A first call that was made again for the loop has an ``Effect`` of its own, which is joined if that call is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from torch import Tensor

from ..records import Attempt, Report
from .base import Step, Treatment

NOTHING = "never took effect in this run"


class Effect:
    """The parts of one run's treatment that have changed a tensor.

    Args:
        treatment: that the run is under.
        tell: gets the lines of what was done, whenever there are more.

    """

    def __init__(self, treatment: Treatment, tell: Callable[[tuple[str, ...]], None] = lambda lines: None) -> None:
        self.treatment, self.tell = treatment, tell
        self._done: set[str] = set()
        self._computed: set[str] = set()  # guidance whose gap is not yet written

    @property
    def done(self) -> tuple[str, ...]:
        """The lines whose every part has changed a tensor."""
        return tuple(dict.fromkeys(line for line, parts in self.treatment.deeds if parts <= self._done))

    @property
    def left(self) -> tuple[str, ...]:
        """The lines of which a part has changed nothing so far."""
        return tuple(dict.fromkeys(line for line, _ in self.treatment.deeds if line not in self.done))

    def changed(self, part: str, before: Tensor, after: Tensor) -> None:
        """Take a tensor of the run as it was without the treatment, and as it is used."""
        if part not in self._done and differ(before, after):
            self._take({part})

    def edited(self, numbers: Iterable[int]) -> None:
        """Take the numbers of edits that have changed what a layer computes."""
        self._take({f"edit {number}" for number in numbers})

    def lacks(self, number: int) -> bool:
        """Whether an edit has changed nothing so far."""
        return f"edit {number}" not in self._done

    def guided(self, gap: Tensor, step: Step) -> Tensor:
        """Return the noise gap [B, C, h, w] of the treatment's guidance; the same object where it changes nothing."""
        for number, guidance in enumerate(self.treatment.guidance):
            part, after = f"guidance {number}", guidance(gap, replace(step, cond=step.uncond + gap))
            if part not in self._done and differ(gap, after):
                self._computed.add(part)
            gap = after
        return gap

    def written(self) -> None:
        """The gap that ``guided`` returned is in the prediction that the sampler gets."""
        self._take(self._computed)
        self._computed = set()

    def join(self, other: Effect) -> None:
        """Take what another call under the same edits, text and noise has changed: it is the run's own now."""
        self._take(other._done)

    def settled(self, report: Report) -> Report:
        """Return the report of a run that has ended: it names what came to nothing, and does not call it kept."""
        left = self.left
        if not left:
            return report
        attempts: list[Attempt] = []
        after: tuple[float, ...] = ()
        for attempt in report.attempts:
            lines = {line for line, _ in self.treatment.deeds if line in attempt.changes}
            if attempt.kept and lines and lines <= set(left):
                attempt = replace(attempt, kept=False, changes=(*attempt.changes, NOTHING))
            attempts.append(attempt)
            after = attempt.scores if attempt.kept and attempt.scores else after
        notes = (*report.notes, *(f"{line}: {NOTHING}" for line in left))
        return replace(report, attempts=tuple(attempts), scores_after=after, notes=notes)

    def _take(self, parts: set[str]) -> None:
        if not parts <= self._done:
            self._done |= parts
            self.tell(self.done)


def differ(before: Tensor, after: Tensor) -> bool:
    """Whether two tensors hold other values."""
    if before is after:
        return False
    return before.shape != after.shape or bool((before != after.to(before)).any())
