"""How alike two pictures are, whatever was cut off, mirrored, resized, recompressed, recoloured or framed.

Room: the core. May import: torch, memguard.copies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .thumbnails import thumbnails
from .windows import FINE, Shape, describe, mirrored

BLOCK = 64  # pictures whose windows are held at a time: 64 x 225 windows x 213 numbers are 12 MB


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Return how alike each picture of one stack is to each of another, float32 [N, M], on the CPU.

    The similarity of two pictures is a cosine: the largest between one of them as a whole, or its mirror image, and a
    window of the other, whichever of the two is the larger. 1: a window of one, of 70 to 100 % of its width and of its
    height, is the other one up to brightness, contrast and size. Two pictures that have nothing in common have .2 to
    .5, because the best of many windows is taken; a picture of one colour has less than .2 with every other, even with
    itself. Other pictures of the same style lie below ``memguard.copies.THRESHOLD`` (docs/evidence/audits/copies.md).
    ``similarity(a, b)`` is ``similarity(b, a).T``, and the shapes of the pictures need not agree.

    Args:
        a: [N, 3, H, W], float, values in 0..1, on any device.
        b: [M, 3, H', W'], the same.

    Raises:
        Refused: a ValueError, in one line, for other shapes, whole numbers, or NaN.

    """
    return compare(thumbnails(a), thumbnails(b))


def compare(a: Tensor, b: Tensor, shape: Shape = FINE) -> Tensor:
    """Return the same for thumbnails, uint8 [N, 3, 32, 32] and [M, 3, 32, 32]."""
    rows = [torch.cat([_block(one, other, shape) for other in b.split(BLOCK)], 1) for one in a.split(BLOCK) if len(b)]
    return torch.cat(rows) if rows else torch.zeros(len(a), len(b))


def _block(a: Tensor, b: Tensor, shape: Shape) -> Tensor:
    first, second = describe(a, shape), describe(b, shape)
    signs = mirrored(shape)
    found = torch.full((len(a), len(b)), -1.0)
    for whole, windows, transposed in ((first[:, 0], second, False), (second[:, 0], first, True)):
        for each in (whole, whole * signs):
            best = (windows @ each.T).amax(1)  # [pictures with windows, whole pictures]
            found = torch.maximum(found, best if transposed else best.T)
    return found
