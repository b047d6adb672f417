"""The maps of a run as they are kept for the page: a byte per pixel.

Part of the ComfyUI host.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class KeptMaps:
    """What the page can show of a run.

    Attributes:
        size: height and width of the maps.
        maps: name -> float map of each image, [B, h, w]; uint8 once packed.
        latent: the samples that the run returned, [B, C, h, w] or [B, C, t, h, w]; None for no preview.
        latent_format: of the model, which knows the colours of its latents.
        ranges: name -> lowest and highest value of a packed map, which are its 0 and 255.
        owner: the user whose run it is, in a ComfyUI that knows several.

    """

    size: tuple[int, int]
    maps: dict[str, Tensor]
    latent: Tensor | None = None
    latent_format: Any = None
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    owner: str = ""

    def packed(self) -> KeptMaps:
        """Return the same with maps of one byte per pixel and the first picture's latent in half precision, on the CPU.

        Raises:
            ValueError: for a map of another size.

        """
        maps, ranges = {}, {}
        for name, values in self.maps.items():
            if tuple(values.shape[1:]) != tuple(self.size):
                shape = list(values.shape[1:])
                raise ValueError(f"map {name!r} has shape {shape}, the run's maps are {list(self.size)}")
            values = torch.nan_to_num(values.detach().to("cpu", torch.float32))
            low, high = float(values.min()), float(values.max())
            maps[name] = ((values - low) * (255 / (high - low) if high > low else 0)).round().to(torch.uint8)
            ranges[name] = low, high
        latent = self.latent[:1].detach().to("cpu", torch.float16) if isinstance(self.latent, Tensor) else None
        return replace(self, maps=maps, latent=latent, ranges=ranges)

    def unpacked(self, name: str) -> Tensor:
        """Return a packed map in its own units, float32 [B, h, w]; 1/255 of its range is lost."""
        low, high = self.ranges[name]
        return self.maps[name].float() * ((high - low) / 255) + low
