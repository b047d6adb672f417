"""What is kept of a picture: 32 x 32 pixels of brightness and colour, three kilobytes.

The whole picture is squeezed into a square, so that a change of shape is no difference. Brightness and the two colour
differences are JPEG's (ITU-R BT.601, full range).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..troubles import Refused

SIDE = 32
CHANNELS = 3
# rows: Y, Cb, Cr of an RGB value in 0..1; Cb and Cr are then moved up by 128 of 255
YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
MOST = 1 << 24  # pixels that are averaged at a time


def thumbnails(pictures: Tensor) -> Tensor:
    """Return the thumbnails of a stack of pictures, uint8 [N, 3, 32, 32].

    Args:
        pictures: [N, 3, H, W], float, values in 0..1; values outside are cut off.

    Raises:
        Refused: for another shape, another kind of number, or NaN.

    """
    if pictures.ndim != 4 or pictures.shape[1] != CHANNELS or 0 in pictures.shape[2:]:
        raise Refused(f"pictures of shape {list(pictures.shape)} cannot be compared; give [N, 3, height, width]")
    if not pictures.is_floating_point():
        raise Refused(f"pictures of {pictures.dtype} cannot be compared; give floats in 0..1")
    count = max(1, MOST // (pictures.shape[2] * pictures.shape[3]))
    parts = [_thumbnails(part) for part in pictures.detach().split(count)]
    return torch.cat(parts) if parts else torch.zeros((0, CHANNELS, SIDE, SIDE), dtype=torch.uint8)


def _thumbnails(pictures: Tensor) -> Tensor:
    small = F.interpolate(pictures.float().clamp(0, 1), (SIDE, SIDE), mode="bilinear", antialias=True)
    if not torch.isfinite(small).all():
        raise Refused("a picture holds values that are no numbers (NaN); decode it again in float32")
    mixed = torch.einsum("ck,nkhw->nchw", torch.tensor(YCC, device=small.device), small)
    mixed[:, 1:] += 128 / 255
    return (mixed * 255).round().clamp(0, 255).to(torch.uint8).cpu()
