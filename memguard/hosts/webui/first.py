"""The first step of a pass under policy ``mitigate``, and the steps that follow it, whatever the host.

Part of the WebUI hosts; may import: memguard's core, torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ...guard import Run
from ...loop import mitigate
from ...mitigations.base import Start, Step, Treatment
from ...mitigations.effect import Effect
from ...passes import repeat, takes_over
from ...records import StepEvidence
from .reading import Reader


@dataclass(frozen=True)
class Made:
    """The first call, made again under a treatment.

    Attributes:
        cond: prediction with the prompt, [B, C, h, w], in units of epsilon.
        uncond: without it.
        effect: what the treatment has changed in the call.
        attention: fields of StepEvidence: what was read in the call, or why nothing was.

    """

    cond: Tensor
    uncond: Tensor
    effect: Effect
    attention: dict[str, Any] = field(default_factory=dict)


EDITED = "attention cannot be read where a mitigation edits it"


class Again(BaseException):
    """Ends a sampler at its first model call, to be started with other noise. No error: nothing may swallow it."""


def treat_first(
    run: Run,
    start: Start,
    make: Callable[[Treatment], Made],
    reference: Callable[[Treatment], Tensor] | None = None,
) -> tuple[Treatment, Made | None]:
    """Return the treatment of a flagged run, and its first step as it is predicted under it, where that changed.

    Args:
        run: flagged at its first step, by its own verdict or that of an earlier pass.
        start: that step.
        make: predicts it again under a treatment.
        reference: predicts what a treated step is compared with; None is its own prediction without the prompt.

    """
    tried: list[tuple[Treatment, Made]] = []

    def redo(treatment: Treatment) -> StepEvidence:
        made = make(treatment)
        tried.append((treatment, made))
        other = made.uncond if reference is None else reference(treatment)
        unread = {"attention": None, "summary": None, "unread": ""}
        return replace(run.evidence[0], noise_cond=made.cond, noise_uncond=other, **unread | made.attention)

    treatment = (repeat if takes_over(run) else mitigate)(run, start, redo)
    return treatment, next((made for other, made in reversed(tried) if other.predicts_as(treatment)), None)


def read_again(
    reader: Reader | None, treatment: Treatment, images: int, tokens: int, predict: Callable[[], Tensor]
) -> tuple[Tensor, dict[str, Any]]:
    """Return a prediction with the prompt under a treatment, and the attention of that very call.

    Args:
        reader: of the pass; None where nobody asks for attention.
        treatment: of the call.
        images: rows of the call.
        tokens: columns of the prompt.
        predict: asks the network for the prompt's rows.

    """
    if reader is None:
        return predict(), {}
    if treatment.edits:  # they change what becomes of queries and keys, and those alone are read
        return predict(), {"unread": EDITED}
    with reader.own(images, tokens):
        found = predict()
    return found, reader.evidence(None)


def guided(effect: Effect, step: Step) -> Tensor:
    """Return the prediction that leads to the treatment's noise gap; the step's own object where nothing changes."""
    before = step.cond - step.uncond
    gap = effect.guided(before, step)
    if gap is before:
        return step.cond
    moved, images = step.uncond + gap, effect.treatment.images
    return moved if images is None else step.cond.index_copy(0, images, moved[images])
