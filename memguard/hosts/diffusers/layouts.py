"""What a model predicts as [B, C, h, w], whatever its own layout: frames, packed tokens, channels last, sound.

Room: memguard.hosts, diffusers. May import: torch, einops.
"""

from __future__ import annotations

import math

from einops import rearrange
from torch import Tensor


def laid_out(tensor: Tensor, channels: int | None = None, ratio: float | None = None) -> Tensor:
    """Return a prediction as images, [B, C, h, w]: frames one below the other, sound as one line.

    Args:
        tensor: [B, C, h, w]; frames [B, C, T, h, w], [B, T, C, h, w] or [B, T, h, w, C]; tokens [B, N, C]; sound
            [B, C, N].
        channels: of the latents, which tells layouts apart; None takes channels first.
        ratio: height / width of the picture; None is a square.

    """
    if tensor.ndim == 4:
        last = channels is not None and tensor.shape[1] != channels == tensor.shape[3]
        return rearrange(tensor, "b h w c -> b c h w") if last else tensor
    if tensor.ndim == 5:
        sizes = tensor.shape
        if channels is None or sizes[1] == channels:
            order = "b c t h w -> b c (t h) w"
        elif sizes[2] == channels:
            order = "b t c h w -> b c (t h) w"
        else:
            order = "b t h w c -> b c (t h) w" if sizes[4] == channels else "b c t h w -> b c (t h) w"
        return rearrange(tensor, order)
    if tensor.ndim == 3:
        _, count, depth = tensor.shape
        if channels is not None and count == channels != depth:
            return rearrange(tensor, "b c n -> b c 1 n")
        height = round(math.sqrt(count * (ratio or 1.0)))
        height = height if height and count % height == 0 else count
        return rearrange(tensor, "b (h w) c -> b c h w", h=height)
    return tensor.reshape(len(tensor), -1, 1, 1)
