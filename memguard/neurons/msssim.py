"""Multi-scale structural similarity of noise differences, as NeMo measures it (torchmetrics' definition).

Three scales, exponents .33, a Gaussian window of sigma 1.5: contrast and structure of the first two scales away
from the borders, the whole index of the last scale with reflected borders, negative values cut to 0. The window has
11 taps. The coarsest scale must be larger than it: latents below 44 get the largest odd window that torchmetrics'
rule for ``kernel_size`` allows (side // 4 >= taps: 7 at 32, 3 at 16, 1 at 8, where only means are left to compare).
torchmetrics itself cannot do that: its Gaussian always has the 11 taps of its sigma.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..troubles import Refused

BETAS = (0.33, 0.33, 0.33)
SIGMA = 1.5
TAPS = 11
SMALLEST = 2 ** len(BETAS)
K1, K2 = 0.01, 0.03


def taps(height: int, width: int) -> int:
    """Return the size of the window for pictures of a size.

    Raises:
        ValueError: below 8 x 8, where three scales do not exist.

    """
    if min(height, width) < SMALLEST:
        raise Refused(
            f"latents of {height} x {width} are too small for MS-SSIM's three scales; use at least 64 x 64 pixels"
        )
    largest = min(height, width) // (len(BETAS) - 1) ** 2
    return min(TAPS, largest - 1 + largest % 2)


def ms_ssim(a: Tensor, b: Tensor, spans: Sequence[float] = (1.0, 1.0, 1.0), floor: float = 0.0) -> Tensor:
    """Return the MS-SSIM of each pair, float32 [N]; 1 for equal pictures.

    Args:
        a: [N, C, h, w], values in [0, 1].
        b: the same shape.
        spans: the dynamic range of each scale. torchmetrics, where it is not told the range, as in the official code,
            takes ``batch_spans``: the score of a pair then depends on the pairs beside it.
        floor: smallest value of a scale; above 0 where a gradient is wanted, which is infinite at 0.

    """
    a, b = a.float(), b.float()
    window = _window(taps(a.shape[-2], a.shape[-1]), a)
    result = torch.ones(len(a), device=a.device)
    for scale, (beta, span) in enumerate(zip(BETAS, spans, strict=True)):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        part = _similarity(a, b, window, span, last=scale == len(BETAS) - 1)
        result = result * part.clamp(min=floor) ** beta
    return result


def batch_spans(*batches: Tensor) -> list[float]:
    """Return, per scale, the largest range (maximum - minimum) of the batches, each [N, C, h, w]."""
    found = []
    for scale in range(len(BETAS)):
        batches = tuple(F.avg_pool2d(batch, 2) for batch in batches) if scale else batches
        found.append(max(float(batch.max() - batch.min()) for batch in batches))
    return found


def _similarity(a: Tensor, b: Tensor, window: Tensor, span: float, last: bool) -> Tensor:
    c1, c2 = (K1 * span) ** 2, (K2 * span) ** 2
    border, channels = window.shape[-1] // 2, a.shape[1]
    padded = F.pad(torch.cat((a, b)), (border,) * 4, mode="reflect") if border else torch.cat((a, b))
    first, second = padded.chunk(2)
    moments = torch.cat((first, second, first * first, second * second, first * second))
    kernel = window.expand(channels, 1, *window.shape)
    mean_a, mean_b, square_a, square_b, product = F.conv2d(moments, kernel, groups=channels).chunk(5)
    variance_a, variance_b = (square_a - mean_a**2).clamp(min=0), (square_b - mean_b**2).clamp(min=0)
    found = (2 * (product - mean_a * mean_b) + c2) / (variance_a + variance_b + c2)
    if last:
        found = found * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    elif border:
        found = found[..., border:-border, border:-border]
    return found.flatten(1).mean(1)


def _window(size: int, like: Tensor) -> Tensor:
    places = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    line = torch.exp(-((places / SIGMA) ** 2) / 2)
    line = line / line.sum()
    return line[:, None] * line
