"""Pictures laid over each other: which window of one shows the other, and how well.

First all windows of a fixed set are tried, coarsely described; the edges of the best one are then moved until it fits.
A window that does not fit at all is not moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .spectra import COARSE, FINE, Shape, describe, describe_grid, mirrored
from .windows import MANY, boxes, inside, intervals

LEVELS = 127  # of a coarse number, which is kept in 8 bits
# shares of a side by which edges are moved; coarsely described at first: fine structure beside its place says nothing
STEPS = {COARSE: (0.04, 0.04, 0.02, 0.02), FINE: (0.02, 0.01, 0.01, 0.005)}
SHORTEST = 0.5  # of a side: a smaller window would fit too many pictures
WORTH = 0.5  # coarse similarity from which a window is moved
BLOCK = 256  # pictures or pairs at a time

# what is tried at each step: nothing, one edge, or both of an axis
MOVES = torch.tensor(
    [(0, 0, 0, 0)]
    + [tuple(sign * (edge == place) for place in range(4)) for edge in range(4) for sign in (-1, 1)]
    + [(-1, -1, 0, 0), (1, 1, 0, 0), (0, 0, -1, -1), (0, 0, 1, 1)]
    + [(-1, 1, 0, 0), (1, -1, 0, 0), (0, 0, -1, 1), (0, 0, 1, -1)],
    dtype=torch.float32,
)
WHOLE = torch.tensor([[0.0, 1.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Views:
    """Pictures and their windows.

    Attributes:
        thumbnails: uint8 [N, 3, 32, 32].
        boxes: the windows, float32 [N, W, 4]; the whole picture first, what its frame leaves last.
        described: them, int8 [N, W, D].

    """

    thumbnails: Tensor
    boxes: Tensor
    described: Tensor

    def __getitem__(self, places: Tensor | slice) -> Views:
        """Return some of the pictures."""
        return Views(self.thumbnails[places], self.boxes[places], self.described[places])

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.thumbnails)


def views(thumbnails: Tensor, lengths: tuple[float, ...] = MANY) -> Views:
    """Return pictures with their windows.

    Args:
        thumbnails: uint8 [N, 3, 32, 32].
        lengths: of the sides of windows: MANY, or FEW where many pictures are kept.

    """
    shared, sides = boxes(lengths), intervals(lengths)
    found = torch.empty(len(thumbnails), len(shared) + 1, 4)
    described = torch.empty((*found.shape[:2], COARSE.size), dtype=torch.int8)
    found[:, :-1] = shared
    for start in range(0, len(thumbnails), BLOCK):
        part = slice(start, start + BLOCK)
        found[part, -1] = inside(thumbnails[part])
        both = describe_grid(thumbnails[part], sides, COARSE), describe(thumbnails[part], found[part, -1:], COARSE)
        described[part] = (torch.cat(both, 1) * LEVELS).round().to(torch.int8)
    return Views(thumbnails, found, described)


def coarse(a: Views, b: Views) -> Tensor:
    """Return how well the best window of either picture shows the other one, roughly, float32 [N, M]."""
    found = torch.empty(len(a), len(b))
    windows = _floats(a.described)
    sought = _both_ways(windows[:, 0]).flatten(0, 1)  # [N * 2, D]
    turned = _both_ways(windows.flatten(0, 1)).flatten(0, 1)  # [N * W * 2, D]
    for start in range(0, len(b), BLOCK):
        other = _floats(b.described[start : start + BLOCK])
        one = (other.flatten(0, 1) @ sought.T).unflatten(0, other.shape[:2]).amax(1)  # [block, N * 2]
        two = turned @ other[:, 0].T  # [N * W * 2, block]
        found[:, start : start + BLOCK] = torch.maximum(
            one.unflatten(1, (len(a), 2)).amax(2).T, two.unflatten(0, (len(a), -1)).amax(1)
        )
    return found


def align(a: Views, b: Views) -> Tensor:
    """Return the similarity of each pair of pictures, one of ``a`` and one of ``b``, float32 [P]."""
    parts = [slice(start, start + BLOCK) for start in range(0, len(a), BLOCK)]
    return torch.cat([_align(a[part], b[part]) for part in parts]) if parts else torch.zeros(0)


def _align(a: Views, b: Views) -> Tensor:
    fits = torch.stack((_fits(a, b), _fits(b, a)), 1)  # [P, 2, 2, W]
    best, place = fits.flatten(1).max(1)
    every, count = torch.arange(len(a)), fits.shape[3]
    turned, window = place // count % 2, place % count
    swapped = place >= 2 * count  # the window is one of a's
    larger = torch.where(swapped[:, None, None, None], a.thumbnails, b.thumbnails)
    whole = torch.where(swapped[:, None, None, None], b.thumbnails, a.thumbnails)
    box = torch.where(swapped[:, None], a.boxes[every, window], b.boxes[every, window])
    worth = (best >= WORTH).nonzero().squeeze(1)
    for shape, steps in STEPS.items():
        target = _target(whole, shape)[every, turned]
        box[worth] = _moved(larger[worth], box[worth], target[worth], shape, steps)
    return _scores(larger, box[:, None], target, FINE)[:, 0]


def _target(whole: Tensor, shape: Shape) -> Tensor:
    """Return the descriptions of whole pictures and of their mirror images, [P, 2, D]."""
    described = describe(whole, WHOLE, shape)
    return torch.cat((described, described * mirrored(shape)), 1)


def _fits(whole: Views, larger: Views) -> Tensor:
    """Return how well each window of one picture of a pair shows the other one, as it is and mirrored, [P, 2, W]."""
    return _both_ways(_floats(whole.described[:, 0])) @ _floats(larger.described).mT


def _moved(thumbnails: Tensor, box: Tensor, target: Tensor, shape: Shape, steps: tuple[float, ...]) -> Tensor:
    """Move the edges of windows while that helps; return the windows, [P, 4]."""
    for step in steps:
        tried = (box[:, None] + step * MOVES).clamp(0, 1)
        short = torch.minimum(tried[..., 1] - tried[..., 0], tried[..., 3] - tried[..., 2]) < SHORTEST
        tried = torch.where(short[..., None], box[:, None], tried)
        best = _scores(thumbnails, tried, target, shape).argmax(1)
        box = tried[torch.arange(len(tried)), best]
    return box


def _scores(thumbnails: Tensor, tried: Tensor, target: Tensor, shape: Shape) -> Tensor:
    """Return the cosines of windows [P, W, 4] with one description each [P, D], [P, W]."""
    return (describe(thumbnails, tried, shape) @ target[..., None])[..., 0]


def _floats(described: Tensor) -> Tensor:
    return described.float() / LEVELS


def _both_ways(described: Tensor) -> Tensor:
    """Return descriptions and those of the mirror images, [N, 2, D]."""
    return torch.stack((described, described * mirrored(COARSE)), 1)
