"""The first step of a pass under policy ``mitigate``, and the steps that follow it, whatever the host.

Part of the WebUI hosts; may import: memguard's core, torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ...guard import Run
from ...loop import mitigate
from ...mitigations.base import Start, Step, Treatment
from ...records import StepEvidence

Pair = tuple[Tensor, Tensor]  # predictions with and without the prompt, in units of epsilon


class Again(BaseException):
    """Ends a sampler at its first model call, to be started with other noise. No error: nothing may swallow it."""


def treat_first(
    run: Run,
    start: Start,
    make: Callable[[Treatment], Pair],
    reference: Callable[[Treatment], Tensor] | None = None,
) -> tuple[Treatment, Pair | None]:
    """Return the treatment of a flagged run, and its first step as it is predicted under it, where that changed.

    Args:
        run: flagged at its first step.
        start: that step.
        make: predicts it again under a treatment.
        reference: predicts what a treated step is compared with; None is its own prediction without the prompt.

    """
    made: list[tuple[Treatment, Pair]] = []

    def redo(treatment: Treatment) -> StepEvidence:
        pair = make(treatment)
        made.append((treatment, pair))
        other = pair[1] if reference is None else reference(treatment)
        return replace(run.evidence[0], noise_cond=pair[0], noise_uncond=other)

    treatment = mitigate(run, start, redo)
    return treatment, next((pair for tried, pair in reversed(made) if tried.predicts_as(treatment)), None)


def guided(treatment: Treatment, step: Step) -> Tensor:
    """Return the prediction that leads to the treatment's noise gap; the step's own object where nothing changes."""
    before = gap = step.cond - step.uncond
    for guidance in treatment.guidance:
        gap = guidance(gap, replace(step, cond=step.uncond + gap))
    if gap is before:
        return step.cond
    moved, images = step.uncond + gap, treatment.images
    return moved if images is None else step.cond.index_copy(0, images, moved[images])
