"""Windows of a picture: those that a cropped copy may show, and what is inside a frame.

A window is a box, (top, bottom, left, right) in shares of the picture's height and width.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# lengths of a side; at the n-th there are n places along it
FEW = (1.0, 0.86, 0.73)
MANY = (1.0, 0.92, 0.84, 0.77, 0.7)
EVEN = 12.0  # grey levels between which the lines of a frame may lie after JPEG
DEEPEST = 0.4  # of a side that a frame may take at each end


@lru_cache(maxsize=4)
def intervals(lengths: tuple[float, ...]) -> Tensor:
    """Return the intervals of a side, float32 [intervals, 2]; the whole side first."""
    found = []
    for number, length in enumerate(lengths):
        for place in range(number + 1):
            start = (1 - length) * (place / number if number else 0)
            found.append((start, start + length))
    return torch.tensor(found)


@lru_cache(maxsize=4)
def boxes(lengths: tuple[float, ...]) -> Tensor:
    """Return the windows of all intervals down times all intervals across, float32 [windows, 4]; the whole first."""
    sides = intervals(lengths)
    return torch.cat((sides.repeat_interleave(len(sides), 0), sides.repeat(len(sides), 1)), 1)


def inside(thumbnails: Tensor) -> Tensor:
    """Return what a frame of one colour leaves of each picture, float32 [N, 4]; the whole where there is no frame.

    Args:
        thumbnails: uint8 [N, 3, h, w].

    """
    values = thumbnails.float()
    sides = []
    for lines in (values, values.transpose(2, 3)):
        size = lines.shape[2]
        for ordered in (lines, lines.flip(2)):
            outer = ordered[:, :, :1].mean(3, keepdim=True)
            even = ((ordered - outer).abs().amax((1, 3)) <= EVEN).long()  # [N, size]
            deep = even.cumprod(1).sum(1).clamp(max=int(size * DEEPEST))
            sides.append(deep / size)
    top, bottom, left, right = sides
    return torch.stack((top, 1 - bottom, left, 1 - right), 1)
