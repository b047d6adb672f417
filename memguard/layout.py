"""How latents lie in a model's own tensors, and the way to [B, C, h, w] and back.

A score needs none of it: a norm and a mean square are the same however values lie. Maps do, and what is done pixel by
pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a command that only prints its help does not wait for it
    from torch import Tensor

PICTURE, FRAMES = "b c h w", "b c t h w"


@dataclass(frozen=True)
class Layout:
    """A layout; without arguments, that of tensors which have their channels first already.

    Attributes:
        own: the model's axes, in the notation of einops.
        plain: the same as a picture, or as frames.
        sizes: of axes that are packed into one.
        streams: shapes, without the batch, of latents that lie one after the other in [B, 1, n], such as a video and
            its sound; empty for latents of one kind.

    """

    own: str = PICTURE
    plain: str = PICTURE
    sizes: tuple[tuple[str, int], ...] = ()
    streams: tuple[tuple[int, ...], ...] = ()

    def latents(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the model's as [B, C, h, w] or [B, C, T, h, w]."""
        return self._moved(tensor, self.own, self.plain)

    def back(self, latents: Tensor) -> Tensor:
        """Return latents as the model's tensors are."""
        return self._moved(latents, self.plain, self.own)

    def parts(self, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return each stream of a tensor: [B, C, h, w], of frames [B, C, T, h, w], of sound also [B, C, n]."""
        if not self.streams:
            return (self.latents(tensor),)
        flat = tensor.flatten(1).split([math.prod(shape) for shape in self.streams], 1)
        return tuple(part.unflatten(1, shape) for part, shape in zip(flat, self.streams, strict=True))

    def whole(self, parts: Sequence[Tensor]) -> Tensor:
        """Return streams as the model's tensors are."""
        if not self.streams:
            return self.back(parts[0])
        import torch

        return torch.cat([part.flatten(1) for part in parts], 1).unsqueeze(1)

    def picture(self, tensor: Tensor) -> Tensor:
        """Return the first stream as pictures, [B, C, h, w]: frames one below the other, sound as one row."""
        first = self.parts(tensor)[0]
        return first.unsqueeze(2) if first.ndim == 3 else first.flatten(2, -2)

    def size(self, tensor: Tensor) -> tuple[int, int]:
        """Return height and width of ``picture``, of which maps are."""
        height, width = self.picture(tensor[:1]).shape[-2:]
        return height, width

    def _moved(self, tensor: Tensor, one: str, other: str) -> Tensor:
        if one == other:
            return tensor
        from einops import rearrange

        return rearrange(tensor, f"{one} -> {other}", **dict(self.sizes))
