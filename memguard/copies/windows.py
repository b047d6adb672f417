"""Windows of a thumbnail, each described by the low frequencies of its cosine transform.

A cropped copy shows a window of the original, so an original is described once per window: intervals of 70 to 100 % of
its width times intervals of its height. The description of a window is what a perceptual hash is made of (DCT-II
without its constant part), not cut down to signs. Amplitudes of pictures fall with frequency (Field, 1987); they are
weighed so that fine and coarse structure count alike, and halved in their logarithm, so that no single edge decides
(power normalisation: Perronnin et al., ECCV 2010).

Room: the core. May import: torch, memguard.copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .thumbnails import SIDE

LEVELS = (1.0, 0.92, 0.84, 0.77, 0.7)  # lengths of intervals, as a share of the side
GRAIN = 0.05  # grey levels; amplitudes near it count less, since rounding to 8 bits alone makes about 0.01
FLAT = 3.0  # added to the norm, squared: one colour has 1 by rounding, ordinary pictures have 20 to 60


@dataclass(frozen=True)
class Shape:
    """How finely windows are taken and described.

    Attributes:
        luma: frequencies per axis of brightness.
        chroma: frequencies per axis of each colour difference.
        weight: of the colour differences against brightness.
        power: exponent to which amplitudes are taken.
        slope: exponent of the frequency by which they are then weighed.
        square: only windows of one share of both sides; a crop of one side only is then found less surely.

    """

    luma: int = 12
    chroma: int = 6
    weight: float = 1.0
    power: float = 0.5
    slope: float = 0.5
    square: bool = False


FINE = Shape()


def describe(thumbnails: Tensor, shape: Shape = FINE) -> Tensor:
    """Return the descriptions of all windows, float32 [N, windows, dimensions], of length 1 at most; the whole first.

    Args:
        thumbnails: uint8 [N, 3, 32, 32].
        shape: of the windows.

    """
    values = thumbnails.double()
    values = (values - values.mean((2, 3), keepdim=True)).float()
    parts = []
    for channels, count, weight in ((slice(0, 1), shape.luma, 1.0), (slice(1, 3), shape.chroma, shape.weight)):
        basis = _basis(count).flatten(0, 1)
        # rows, then columns: [N, C, intervals of y * count, intervals of x * count]
        spectrum = basis @ values[:, channels] @ basis.T
        spectrum = spectrum.unflatten(3, (-1, count)).unflatten(2, (-1, count))  # N, C, iy, ky, ix, kx
        spectrum = spectrum.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # N, windows, C, ky, kx
        spectrum = spectrum * (spectrum.abs() + GRAIN) ** (shape.power - 1)
        spectrum = spectrum * (weight * _slope(count, shape.slope))
        parts.append(spectrum.flatten(2)[:, :, _kept(spectrum.shape[2], count)])
    found = torch.cat(parts, 2)
    if shape.square:
        found = found[:, _square()]
    return found / (found.square().sum(2, keepdim=True) + FLAT**2).sqrt()


def mirrored(shape: Shape = FINE) -> Tensor:
    """Return the signs that make the description of a window that of its mirror image, float32 [dimensions]."""
    signs = []
    for channels, count in ((1, shape.luma), (2, shape.chroma)):
        line = (-1.0) ** torch.arange(count)
        signs.append(line.expand(channels, count, count).flatten()[_kept(channels, count)])
    return torch.cat(signs)


@lru_cache(maxsize=8)
def intervals() -> tuple[tuple[float, float], ...]:
    """Return the intervals of a side, as shares of it; the whole side first."""
    found = []
    for number, length in enumerate(LEVELS):
        for place in range(number + 1):
            start = (1 - length) * (place / number if number else 0)
            found.append((start, start + length))
    return tuple(found)


@lru_cache(maxsize=8)
def _basis(count: int) -> Tensor:
    """Return the cosines of each interval, integrated over pixels, [intervals, count, 32]; each of norm about 1."""
    edges = torch.arange(SIDE + 1, dtype=torch.float64) / SIDE
    found = []
    for start, end in intervals():
        inside = ((edges - start) / (end - start)).clamp(0, 1)
        order = torch.arange(1, count, dtype=torch.float64)[:, None] * torch.pi
        waves = torch.sin(order * inside) / order * 2**0.5
        found.append(torch.cat((inside[None], waves)).diff(dim=1))
    return torch.stack(found).float()


@lru_cache(maxsize=8)
def _slope(count: int, exponent: float) -> Tensor:
    line = torch.arange(count, dtype=torch.float32)
    return (line[:, None] ** 2 + line**2) ** (exponent / 2)


@lru_cache(maxsize=8)
def _kept(channels: int, count: int) -> Tensor:
    """Return the places of all frequencies but the constant one, of channels * count * count."""
    kept = torch.ones(channels, count * count, dtype=torch.bool)
    kept[:, 0] = False
    return kept.flatten().nonzero().squeeze(1)


@lru_cache(maxsize=1)
def _square() -> Tensor:
    lengths = [round(end - start, 6) for start, end in intervals()]
    pairs = [y == x for y in lengths for x in lengths]
    return torch.tensor(pairs).nonzero().squeeze(1)
