"""How latents lie in a denoiser's own tensors: as pictures, as frames, or packed into tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ... import layout
from ...layout import FRAMES


class Layout(layout.Layout):
    """A layout, found by how a denoiser is called or by what it gives."""

    @classmethod
    def of(cls, tensor: Tensor, arguments: Mapping[str, Any], channels: int | None) -> Layout | None:
        """Return the layout of what a denoiser is called with; None where it is not known.

        Args:
            tensor: the latents.
            arguments: of the call, by name: they say where tokens lie.
            channels: that the denoiser takes, where it says so.

        """
        if tensor.ndim == 4:
            return cls()
        if tensor.ndim == 5 and channels is not None:
            return _frames(tensor, channels)
        return _tokens(tensor, arguments) if tensor.ndim == 3 else None

    @classmethod
    def like(cls, tensor: Tensor, channels: int | None, ratio: float | None) -> Layout:
        """Return what the layout of a prediction seems to be, where nothing says where its values lie.

        Args:
            tensor: [B, C, h, w]; frames, channels first or last; tokens [B, N, C]; sound [B, C, N].
            channels: that are predicted, where the denoiser says so.
            ratio: height / width of the picture; None is a square.

        """
        if tensor.ndim == 4:
            last = channels is not None and tensor.shape[1] != channels == tensor.shape[3]
            return cls("b h w c") if last else cls()
        if tensor.ndim == 5:
            return (None if channels is None else _frames(tensor, channels)) or cls(FRAMES, FRAMES)
        _, count, depth = tensor.shape
        if channels is not None and count == channels != depth:
            return cls("b c (h w)", sizes=(("h", 1),))
        height = round(math.sqrt(count * (ratio or 1.0)))
        return cls("b (h w) c", sizes=(("h", height if height and count % height == 0 else count),))


def _frames(tensor: Tensor, channels: int) -> Layout | None:
    for axis, own in ((1, FRAMES), (2, "b t c h w"), (4, "b t h w c")):
        if tensor.shape[axis] == channels:
            return Layout(own, FRAMES)
    return None


def _tokens(tensor: Tensor, arguments: Mapping[str, Any]) -> Layout | None:
    """Return the layout of tokens: Flux and its kin pack 2 x 2 pixels into one and say where each token lies.

    Qwen-Image and its kin say how many frames, rows and columns of such tokens each picture has.
    """
    count = tensor.shape[1]
    places, shapes = arguments.get("img_ids"), arguments.get("img_shapes")
    height = width = 0
    if isinstance(places, Tensor):
        height, width = (int(n) + 1 for n in places.reshape(-1, places.shape[-1])[:, 1:3].amax(0))
    elif shapes:
        picture = shapes[0] if isinstance(shapes[0][0], int) else shapes[0][0]  # of a row's pictures, the one it makes
        height, width = picture[1:]
    if height * width == count:
        packed = (("h", height), ("w", width), ("p", 2), ("q", 2))
        return Layout("b (h w) (c p q)", "b c (h p) (w q)", packed)
    sides = [arguments.get(name) for name in ("num_frames", "height", "width")]  # LTX
    if all(isinstance(side, int) for side in sides) and math.prod(sides) == count:  # type: ignore[arg-type]
        return Layout("b (t h w) c", FRAMES, tuple(zip("thw", sides, strict=True)))  # type: ignore[arg-type]
    return None
