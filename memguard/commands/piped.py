"""A pipeline as an audit asks it, with a progress bar, or lines where no terminal shows one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..audit.making import Making
from ..hosts.diffusers import auditing
from . import common, lines


@dataclass(frozen=True)
class Piped:
    """See memguard.audit.making.Model; ``what`` stands before the captions that are counted."""

    pipe: Any
    making: Making
    what: str

    def scores(self, captions: Sequence[str]) -> list[float | None]:
        """Return the first-step score of each caption."""
        return auditing.scores(self.pipe, captions, self.making)

    def pictures(self, captions: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield the pictures of each caption, uint8 [images, H, W, 3]."""
        made = auditing.generate(self.pipe, captions, self.making)
        told = lines.counted(made, len(captions), f"memguard audit: {self.what}", " captions")
        found: Iterator[np.ndarray] = common.progress(told, len(captions), f" {self.what}captions")
        return found
