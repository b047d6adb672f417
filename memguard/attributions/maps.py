"""Where in the picture: float maps [B, h, w] over the latent.

``noise_gap``: squared noise gap per pixel; at the last step it lies where the model copies. ``bright_ending``:
attention of the EOS token at the last step in the two down layers of the highest resolution (Chen et al., ICLR 2025;
the official code reads step 49 of 50, 64x64 latents and needs two generations, here any run and one). ``word``:
attention of one word, summed over steps and layers (DAAM, Tang et al., ACL 2023; negative values of the upsampling are
cut once, at the end, and not per layer and step).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

WINDOW = 13  # of the optional smoothing, in latent pixels of a 64 x 64 latent


class MapTally:
    """Collects what the maps need from the cross-attention of a run, one call at a time.

    Memory: one map per token column and layer, and one per column of two layers for the last step; nothing grows with
    the steps. A layer may change its size within a run, as under Deep Shrink.

    Args:
        size: (h, w) of the latent.

    Attributes:
        left: layers that are no scaled copy of the latent in some call, and so stand in no map.

    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.calls = 0
        self.left: set[str] = set()
        # layer -> its size -> [B, tokens, h, w]
        self._sums: dict[str, dict[tuple[int, int], Tensor]] = {}
        self._last: list[Tensor] = []  # of the last step, the two down layers of the highest resolution

    def add(self, layers: Mapping[str, Tensor]) -> None:
        """Take the cross-attention of one model call: layer -> probabilities [B, positions, tokens]."""
        last = []
        for name, found in layers.items():
            try:
                size = grid(found.shape[1], self.size)
            except ValueError:
                self.left.add(name)
                continue
            maps = rearrange(found, "b (h w) n -> b n h w", h=size[0], w=size[1])
            sums = self._sums.setdefault(name, {})
            sums[size] = sums[size] + maps if size in sums else maps
            if name.startswith("down"):
                last.append(maps)
        self.calls += 1
        # largest first; sorted() keeps the order of execution among equals
        self._last = sorted(last, key=lambda maps: -maps.shape[-1] * maps.shape[-2])[:2]

    def word(self, columns: Sequence[int]) -> Tensor:
        """Return the map of a word, [B, h, w]: mean over its columns, the layers and the steps.

        Raises:
            ValueError: if nothing was collected or the word has no columns.

        """
        whole = [sums for name, sums in self._sums.items() if name not in self.left]
        if not whole or not columns:
            raise ValueError("no attention was read for this word")
        found = [
            [_resize(maps[:, list(columns)].mean(1), self.size, "bicubic") for maps in sums.values()] for sums in whole
        ]
        maps = [torch.stack(sizes).sum(0) for sizes in found]
        return (torch.stack(maps).mean(0) / self.calls).clamp(min=0)

    def bright_ending(self, eos: Sequence[int]) -> Tensor:
        """Return the map of EOS at the last step, [B, h, w].

        Args:
            eos: columns of the EOS tokens; a prompt of several chunks has one in each, and their mean is taken.

        Raises:
            ValueError: if no down layer was read, or there is no EOS.

        """
        if not self._last or not eos:
            raise ValueError("no EOS token, or no down layer with cross-attention was read")
        maps = [_resize(found[:, list(eos)].mean(1), self.size, "bilinear") for found in self._last]
        return torch.stack(maps).mean(0)


def grid(positions: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of a layer from its number of positions and the size of the latent.

    Raises:
        ValueError: if the positions are no scaled-down copy of the latent.

    """
    height, width = size
    for factor in range(1, 65):
        rows, columns = math.ceil(height / factor), math.ceil(width / factor)
        if rows * columns == positions:
            return rows, columns
    raise ValueError(f"{positions} positions are no scaled copy of a latent of {height} x {width}")


def smooth(maps: Tensor, window: int = WINDOW) -> Tensor:
    """Return maps [B, h, w] averaged over a window of odd size; the picture's edge counts only what lies inside."""
    return F.avg_pool2d(maps.unsqueeze(1), window, 1, window // 2, count_include_pad=False).squeeze(1)


def normalize(maps: Tensor) -> Tensor:
    """Return maps [B, h, w] scaled to 0..1, each by its own range; a flat map becomes zeros."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp(min=torch.finfo(maps.dtype).tiny)


def _resize(maps: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps.unsqueeze(1), size, mode=mode, align_corners=False, antialias=False).squeeze(1)
