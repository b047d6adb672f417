"""What a window of a thumbnail looks like: the low frequencies of its cosine transform.

This is what a perceptual hash is made of (DCT-II without its constant part), not cut down to signs. Amplitudes of
pictures fall with frequency (Field, 1987): they are weighed so that fine and coarse structure count alike, after their
square root was taken, so that no single edge decides (power normalisation: Perronnin et al., ECCV 2010). A mirrored
window has the same numbers, every second one with the other sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .thumbnails import SIDE

GRAIN = 0.05  # grey levels; amplitudes near it count less, since rounding to 8 bits alone makes about 0.01
FLAT = 3.0  # added to the norm, squared: one colour has 1 by rounding, ordinary pictures have 20 to 60


@dataclass(frozen=True)
class Shape:
    """How finely a window is described.

    Attributes:
        luma: frequencies per axis of brightness.
        chroma: frequencies per axis of each colour difference.
        weight: of the colour differences against brightness.

    """

    luma: int
    chroma: int

    @property
    def size(self) -> int:
        """Numbers that describe a window."""
        return self.luma**2 - 1 + 2 * (self.chroma**2 - 1)

    @property
    def parts(self) -> tuple[tuple[slice, int], ...]:
        """Channels and their frequencies per axis; no channel has more than the first."""
        return (slice(0, 1), self.luma), (slice(1, 3), self.chroma)


COARSE = Shape(7, 4)  # 78 numbers; bears a window that lies 7 % of a side beside the right one
FINE = Shape(16, 8)  # 381 numbers


def describe(thumbnails: Tensor, boxes: Tensor, shape: Shape) -> Tensor:
    """Return the descriptions of windows, float32 [N, W, shape.size], of length 1 at most.

    Args:
        thumbnails: uint8 [N, 3, 32, 32].
        boxes: [W, 4], the same windows of each picture, or [N, W, 4].
        shape: of the descriptions.

    """
    boxes = boxes.expand(len(thumbnails), -1, -1)
    down, across = _basis(boxes[..., :2], shape.luma), _basis(boxes[..., 2:], shape.luma)  # [N, W, count, 32]
    values, parts = _values(thumbnails), []
    for channels, count in shape.parts:
        beside = values[:, channels].permute(0, 2, 1, 3).flatten(2)  # [N, 32, C * 32]
        # plain matrix products without copies: [N, W * count, C * 32], then [N * W, count * C, count]
        lines = down[:, :, :count].flatten(1, 2) @ beside
        spectrum = lines.reshape(-1, count * (beside.shape[2] // SIDE), SIDE) @ across[:, :, :count].flatten(0, 1).mT
        spectrum = spectrum.unflatten(1, (count, -1)).transpose(1, 2).unflatten(0, boxes.shape[:2])
        parts.append(_weighed(spectrum))
    return _unit(parts)


def describe_grid(thumbnails: Tensor, sides: Tensor, shape: Shape) -> Tensor:
    """Return the same, for all intervals down times all intervals across, [N, I * I, shape.size].

    Args:
        thumbnails: uint8 [N, 3, 32, 32].
        sides: the intervals, [I, 2].
        shape: of the descriptions.

    """
    basis, values, parts = _basis(sides, shape.luma), _values(thumbnails), []
    for channels, count in shape.parts:
        lines = basis[:, :count].flatten(0, 1)
        spectrum = lines @ values[:, channels] @ lines.T
        spectrum = spectrum.unflatten(3, (-1, count)).unflatten(2, (-1, count))  # [N, C, I, count, I, count]
        parts.append(_weighed(spectrum.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)))
    return _unit(parts)


def mirrored(shape: Shape) -> Tensor:
    """Return the signs that make the description of a window that of its mirror image, float32 [shape.size]."""
    signs = []
    for channels, count in ((1, shape.luma), (2, shape.chroma)):
        line = (-1.0) ** torch.arange(count)
        signs.append(line.expand(channels, count, count).flatten(1)[:, 1:].flatten())
    return torch.cat(signs)


def _basis(intervals: Tensor, count: int) -> Tensor:
    """Return the cosines of intervals [.., 2], integrated over each pixel, float32 [.., count, 32].

    The integral of cos(k p) is sin(k p) / k; sines of multiples come from sin(k p) = 2 cos(p) sin((k-1) p) -
    sin((k-2) p), which is several times as fast as asking for each.
    """
    edges = torch.arange(SIDE + 1, dtype=torch.float32) / SIDE
    start, end = intervals[..., :1], intervals[..., 1:]
    places = ((edges - start) / (end - start)).clamp(0, 1)  # [.., 33]
    angle = places * torch.pi
    twice, waves = 2 * angle.cos(), [torch.zeros_like(angle), angle.sin()]
    while len(waves) < count:
        waves.append(twice * waves[-1] - waves[-2])
    order = torch.arange(count, dtype=torch.float32).clamp(min=1)[:, None] * (torch.pi / 2**0.5)
    waves[0] = places * (torch.pi / 2**0.5)
    return torch.stack(waves[:count], -2).diff(dim=-1) / order


def _values(thumbnails: Tensor) -> Tensor:
    """Return grey levels around the mean of each channel, float32."""
    values = thumbnails.double()
    return (values - values.mean((2, 3), keepdim=True)).float()


def _weighed(spectrum: Tensor) -> Tensor:
    """Return amplitudes [.., C, count, count] by their square root and weighed, [.., C * (count**2 - 1)]."""
    spectrum = spectrum * (spectrum.abs() + GRAIN).rsqrt() * _slope(spectrum.shape[-1])
    return spectrum.flatten(-2)[..., 1:].flatten(-2)


def _unit(parts: list[Tensor]) -> Tensor:
    found = torch.cat(parts, -1)
    return found * (found.square().sum(-1, keepdim=True) + FLAT**2).rsqrt()


@lru_cache(maxsize=8)
def _slope(count: int) -> Tensor:
    """Return the square root of each frequency, [count, count]."""
    line = torch.arange(count, dtype=torch.float32)
    return (line[:, None] ** 2 + line**2) ** 0.25
