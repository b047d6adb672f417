"""How alike two pictures are, whatever was cut off, mirrored, resized, recompressed, recoloured or framed."""

from __future__ import annotations

import torch
from torch import Tensor

from .alignment import Views, align, views
from .thumbnails import thumbnails

PAIRS = 1024  # at a time: 36 MB of windows


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return how alike each picture of one stack is to each of another, float32 [N, M], on the CPU.

    The similarity of two pictures is a cosine: the largest between one of them as a whole, or its mirror image, and a
    window of the other, whichever of the two is the larger, of what ``spectra`` describes. 1: a window of one, of half
    or more of its width and of its height, is the other one up to brightness, contrast and size. Two pictures that have
    nothing in common have .1 to .4, because the best of many windows is taken; a picture of one colour resembles
    nothing, not even itself. Other pictures of the same style lie below ``memguard.copies.THRESHOLD``
    (docs/evidence/audits/copies.md). ``similarity(a, b)`` is ``similarity(b, a).T``; the shapes of the pictures may
    differ.

    Args:
        a: [N, 3, H, W], float, values in 0..1, on any device.
        b: [M, 3, H', W'], the same.

    Raises:
        Refused: a ValueError, in one line, for other shapes, whole numbers, or NaN.

    """
    return compare(views(thumbnails(a)), views(thumbnails(b)))


def compare(a: Views, b: Views) -> Tensor:
    """Return the same for pictures of which the windows are known."""
    rows, columns = torch.arange(len(a)).repeat_interleave(len(b)), torch.arange(len(b)).repeat(len(a))
    parts = [align(a[row], b[column]) for row, column in zip(rows.split(PAIRS), columns.split(PAIRS), strict=True)]
    return torch.cat(parts).reshape(len(a), len(b))
