"""A step whose prompt and negative prompt are predicted in two calls, and other predictions in the place of its own.

The pipeline has the first call's prediction before the second is made, so neither can be exchanged in it: what the
scheduler receives of both is. A call with both prompts is treated in its own output instead: whatever the pipeline
makes of it, and at any scale, while at the scheduler's step that must be known.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ...host import ROLES, Role
from .calls import Call
from .combination import EQUAL, Combination, find, shaped
from .rows import Unscored

UNFITTED = (
    "what the pipeline makes of its two predictions is not known, so that none can be put in the place of its own"
)
EARLY = (
    "compared with the empty prompt, this pipeline is judged before it has made the second of a step's two calls, and "
    "both are needed; use the negative prompt as reference"
)
STEPLESS = "the pipeline's scheduler has no step, where predictions of two calls are exchanged"


@dataclass
class Halves:
    """The two calls of the step in progress.

    Attributes:
        own: by role, as the pipeline has them.
        again: made again under a treatment, by role; none where those of ``own`` were made under it already.

    """

    own: dict[Role, Call] = field(default_factory=dict)
    again: dict[Role, Call] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether both calls were made."""
        return len(self.own) == len(ROLES)

    def used(self, role: Role) -> Call:
        """Return the call whose prediction is to be used for a role."""
        return self.again.get(role, self.own[role])

    def combined(self, received: Tensor, sample: Any, scale: float | None) -> Combination:
        """Return how the pipeline has joined its two predictions.

        Args:
            received: what the scheduler receives.
            sample: the latents, as it receives them.
            scale: guidance scale, where it is known.

        Raises:
            Alike: if both predict the same, so that there is nothing to guide by.
            Unscored: if it cannot be told.

        """
        cond, uncond = (self.own[role] for role in ROLES)
        mine = [self._as(received, each, each.prediction) for each in (cond, uncond)]
        same = sample if isinstance(sample, Tensor) and sample.shape == received.shape else None
        found = None if None in mine else find(mine, received, same, scale)  # type: ignore[arg-type]
        if found is None or found.cond is not mine[0]:
            raise Unscored(UNFITTED)
        exact = scale is not None and abs(found.scale - scale) <= EQUAL * found.scale  # up to the fit's rounding
        return replace(found, scale=scale) if exact and scale is not None else found

    def put(
        self, found: Combination, received: Tensor, cond: Tensor, uncond: Tensor, images: Tensor | None = None
    ) -> Tensor:
        """Return what the scheduler is to receive in the place of ``received``.

        Args:
            found: from ``combined``.
            received: what it receives.
            cond: prediction with the prompt, as in a Call.
            uncond: without it.
            images: numbers of those that are treated; None is all.

        """
        one, other = (
            self._as(received, self.own[role], values) for role, values in zip(ROLES, (cond, uncond), strict=True)
        )
        assert one is not None and other is not None
        moved = found.put(received, one, other).to(received)
        return moved if images is None else received.index_copy(0, images, moved[images])

    @staticmethod
    def _as(received: Tensor, call: Call, prediction: Tensor) -> Tensor | None:
        return shaped(call.layout.back(prediction), received)
