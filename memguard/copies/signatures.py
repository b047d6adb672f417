"""What an index keeps of a picture, and how pictures are found by it.

Two kinds: thumbnails, which need nothing but torch, and the vectors of an embedding that the user gives.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..troubles import Refused
from .alignment import Views, align, coarse, views
from .reading import read
from .thumbnails import CHANNELS, SIDE, thumbnails
from .windows import FEW

CANDIDATES = 8  # of a coarse search that are laid over the picture
AT_ONCE = 16  # pictures that are searched at a time
NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory")  # torch's words on all devices


class Found(Protocol):
    """References that can be searched."""

    def nearest(self, signatures: Tensor, count: int, barred: list[int | None]) -> tuple[Tensor, Tensor]:
        """Return the similarities and the places of the nearest references, each [N, count], the nearest first.

        Args:
            signatures: of N pictures.
            count: how many are wanted; fewer where there are fewer references.
            barred: for each picture a reference that does not count, or None.

        """


class Signatures(Protocol):
    """A kind of signature.

    Attributes:
        kind: names it and its version, in an index.
        shape: of one signature.
        dtype: of its numbers.
        whole: whether large pictures are needed at their full size.

    """

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    whole: bool

    def make(self, pictures: list[Tensor]) -> Tensor:
        """Return the signatures of pictures, each float32 [1, 3, H, W] in 0..1."""

    def open(self, signatures: Tensor) -> Found:
        """Return references of these signatures, [M, *shape]."""


class Thumbnails:
    """Thumbnails of 32 x 32 pixels, and the search by windows of them."""

    kind = "memguard thumbnails 1"
    shape: tuple[int, ...] = (CHANNELS, SIDE, SIDE)
    dtype = torch.uint8
    whole = False

    def make(self, pictures: list[Tensor]) -> Tensor:
        """Return the thumbnails, uint8 [N, 3, 32, 32]."""
        return torch.cat([thumbnails(each) for each in pictures])

    def open(self, signatures: Tensor) -> Found:
        """Describe the windows of the references."""
        return _ByWindows(views(signatures, FEW))


def signature(kind: Signatures, path: Path) -> Tensor:
    """Return the signature of a file's picture.

    Raises:
        Refused: one line that names the file, if it is no picture, damaged, or too large for the memory.

    """
    try:
        return kind.make([read(path, kind.whole)])[0]
    except Refused as error:
        said = str(error)
        raise Refused(said if said.startswith(str(path)) else f"{path}: {said}") from None
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(str(error)):
            raise
        raise Refused(f"{path}: there is not enough memory for its pixels; make it smaller") from None


class _ByWindows:
    """References with few windows each; the candidates get many."""

    def __init__(self, references: Views) -> None:
        self._references = references

    def nearest(self, signatures: Tensor, count: int, barred: list[int | None]) -> tuple[Tensor, Tensor]:
        parts = [slice(start, start + AT_ONCE) for start in range(0, len(signatures), AT_ONCE)]
        found = [self._nearest(signatures[part], count, barred[part]) for part in parts]
        similarities, places = zip(*found, strict=True)
        return torch.cat(similarities), torch.cat(places)

    def _nearest(self, signatures: Tensor, count: int, barred: list[int | None]) -> tuple[Tensor, Tensor]:
        rough = _without(coarse(views(signatures, FEW), self._references), barred)
        tried = min(max(CANDIDATES, count), rough.shape[1])
        best, places = rough.topk(tried, 1)
        rows = torch.arange(len(signatures)).repeat_interleave(tried)
        candidates = self._references.thumbnails[places.flatten()]
        fine = align(views(signatures)[rows], views(candidates)).reshape(best.shape)
        fine = torch.where(best.isinf(), best, fine)  # a barred one
        similarities, order = fine.sort(1, descending=True)
        return similarities[:, :count], places.gather(1, order)[:, :count]


def _without(similarities: Tensor, barred: list[int | None]) -> Tensor:
    for row, place in enumerate(barred):
        if place is not None:
            similarities[row, place] = -torch.inf
    return similarities


class ByCosine:
    """References that are vectors of length 1."""

    def __init__(self, references: Tensor) -> None:
        self._references = references.float()

    def nearest(self, signatures: Tensor, count: int, barred: list[int | None]) -> tuple[Tensor, Tensor]:
        """Return the largest cosines and their places."""
        similarities = _without(signatures.float() @ self._references.T, barred)
        best = similarities.topk(min(count, similarities.shape[1]), 1)
        return best.values, best.indices
