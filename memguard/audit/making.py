"""What an audit asks of a host: pictures of captions, and first-step scores of them, from noise that it names.

The pictures of a caption come from seeds that do not depend on the model, so that a model with and without a LoRA, and
each checkpoint of a training, starts from the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..table import AUDIT, RUN


@dataclass(frozen=True)
class Making:
    """How pictures are made.

    Attributes:
        images: per caption.
        steps: of the schedule.
        guidance: scale.
        height: pixels; None is the model's own.
        width: pixels.
        seed: of the first image of each caption.

    """

    images: int = AUDIT["num_images"].default
    steps: int = AUDIT["num_inference_steps"].default
    guidance: float = RUN["guidance_scale"].default
    height: int | None = None
    width: int | None = None
    seed: int = RUN["seed"].default


class Model(Protocol):
    """A model in a host, with the training that is audited or without it."""

    def scores(self, captions: Sequence[str]) -> list[float | None]:
        """Return the first-step score of each caption (mean text-conditional noise norm), None where there is none."""

    def pictures(self, captions: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield the pictures of each caption, uint8 [images, H, W, 3]."""


def seeds(captions: Sequence[str], making: Making) -> list[list[int]]:
    """Return the seeds of each caption's images; a caption that comes again goes on behind the seeds before."""
    seen: dict[str, int] = {}
    found = []
    for caption in captions:
        first = making.seed + making.images * seen.get(caption, 0)
        seen[caption] = seen.get(caption, 0) + 1
        found.append(list(range(first, first + making.images)))
    return found
