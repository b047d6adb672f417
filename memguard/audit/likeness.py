"""How alike generated pictures are to real ones: at low resolution, or by an embedding that the user gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..copies.alignment import align, coarse, views
from ..copies.matching import compare
from ..copies.reading import tensor
from ..copies.signatures import CANDIDATES, Signatures, Thumbnails
from ..table import AUDIT

# A generated copy is blurred and its colours drift, so it is less like its picture than a file that was saved again
# (memguard.copies.THRESHOLD), and it is compared with its own picture first, not with a hundred thousand. Chosen on
# the pictures of one half of the captions of docs/evidence/audits/lora.md, and measured there on the other.
FLOOR: float = AUDIT["threshold"].default
CLOSE = 128  # real pictures that are all compared closely; of more only those that are most alike, roughly


class Likeness:
    """Real pictures, and how alike others are to them.

    Args:
        pictures: the real ones.
        kind: of what is compared; thumbnails, or an embedding.

    """

    def __init__(self, pictures: Sequence[Image.Image], kind: Signatures | None = None) -> None:
        self._kind: Signatures = kind or Thumbnails()
        self._windows = kind is None
        self._real = self._made(pictures)

    def of(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Return how alike each picture is to each real one, float32 [N, real]."""
        return self._compared(self._made(pictures))

    def between(self) -> np.ndarray:
        """Return how alike the real pictures are to each other, float32 [real, real]."""
        return self._compared(self._real)

    def _made(self, pictures: Sequence[Image.Image]) -> Any:
        signatures = torch.cat([self._kind.make([tensor(each)]) for each in pictures])
        return views(signatures) if self._windows else signatures.float()

    def _compared(self, made: Any) -> np.ndarray:
        if not self._windows:
            found = made @ self._real.T
        elif len(self._real) <= CLOSE:
            found = compare(made, self._real)
        else:
            rough = coarse(made, self._real)
            places = rough.topk(CANDIDATES, 1).indices
            rows = torch.arange(len(made)).repeat_interleave(CANDIDATES)
            fine = align(made[rows], self._real[places.flatten()]).reshape(places.shape)
            # what was not looked at closely is no nearer than what was
            found = rough.minimum(fine.amin(1, keepdim=True)).scatter(1, places, fine)
        result: np.ndarray = found.numpy().astype(np.float32)
        return result
