"""MS-SSIM against torchmetrics where that can do it, and against loops where it cannot."""

import math

import pytest
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as reference

from memguard.neurons.msssim import batch_spans, ms_ssim, taps

BETAS = (0.33, 0.33, 0.33)


def pictures(side: int = 64, rows: int = 10, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    a = torch.rand(rows, 4, side, side, generator=drawn)
    mixed = torch.linspace(0, 1, rows)[:, None, None, None]
    return a, mixed * a + (1 - mixed) * torch.rand(rows, 4, side, side, generator=drawn)


def test_the_official_call_of_torchmetrics():
    """P20: reduction none, kernel 11, three scales; the data range is left to torchmetrics."""
    a, b = pictures()
    expected = reference(a, b, reduction="none", kernel_size=11, betas=BETAS)
    torch.testing.assert_close(ms_ssim(a, b, batch_spans(a, b)), expected, rtol=1e-5, atol=1e-6)


def test_with_a_data_range_of_one():
    a, b = pictures(seed=1)
    expected = reference(a, b, reduction="none", kernel_size=11, betas=BETAS, data_range=1.0)
    torch.testing.assert_close(ms_ssim(a, b), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ms_ssim(a, b, batch_spans(a, b)), expected, rtol=1e-4)


def test_sides_that_are_not_equal_and_the_limit_of_eleven_taps():
    drawn = torch.Generator().manual_seed(2)
    a, b = torch.rand(3, 4, 48, 72, generator=drawn), torch.rand(3, 4, 48, 72, generator=drawn)
    expected = reference(a, b, reduction="none", kernel_size=11, betas=BETAS, data_range=1.0)
    torch.testing.assert_close(ms_ssim(a, b), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("side", "expected"), [(8, 1), (12, 3), (16, 3), (32, 7), (43, 9), (44, 11), (64, 11), (128, 11)]
)
def test_small_latents_get_the_largest_window_of_torchmetrics_rule(side, expected):
    assert taps(side, side) == taps(side, 200) == expected
    # torchmetrics refuses kernels of side // 4 or more, for which its message names the limit
    picture = torch.rand(1, 1, side, side)
    if expected < 11:
        with pytest.raises(ValueError, match="the image height must be larger"):
            reference(picture, picture, kernel_size=expected + 2, betas=BETAS, gaussian_kernel=False)
        reference(picture, picture, kernel_size=3 if expected > 1 else 1, betas=BETAS, gaussian_kernel=False) if (
            expected > 1
        ) else None


def slow(a: list, b: list, size: int) -> float:
    """One pair of one channel, in loops: [h][w] lists."""
    weights = [math.exp(-((i - size // 2) ** 2) / (2 * 1.5**2)) for i in range(size)]
    weights = [w / sum(weights) for w in weights]
    half, result = size // 2, 1.0

    def mirrored(i, n):
        return -i if i < 0 else 2 * (n - 1) - i if i >= n else i

    for scale in range(3):
        n, terms = len(a), []
        for y in range(n):
            for x in range(n):
                if scale < 2 and not (half <= y < n - half and half <= x < n - half):
                    continue
                m = [0.0] * 5
                for i, wy in enumerate(weights):
                    for j, wx in enumerate(weights):
                        p = a[mirrored(y + i - half, n)][mirrored(x + j - half, n)]
                        q = b[mirrored(y + i - half, n)][mirrored(x + j - half, n)]
                        for k, value in enumerate((p, q, p * p, q * q, p * q)):
                            m[k] += wy * wx * value
                contrast = (2 * (m[4] - m[0] * m[1]) + 0.0009) / (m[2] - m[0] ** 2 + m[3] - m[1] ** 2 + 0.0009)
                light = (2 * m[0] * m[1] + 0.0001) / (m[0] ** 2 + m[1] ** 2 + 0.0001)
                terms.append(contrast * (light if scale == 2 else 1.0))
        result *= max(0.0, sum(terms) / len(terms)) ** 0.33
        a, b = ([[(v[2 * y][2 * x] + v[2 * y + 1][2 * x] + v[2 * y][2 * x + 1] + v[2 * y + 1][2 * x + 1]) / 4
                  for x in range(n // 2)] for y in range(n // 2)] for v in (a, b))  # fmt: skip
    return result


@pytest.mark.parametrize("side", [8, 16, 32])
def test_small_windows_against_loops(side):
    drawn = torch.Generator().manual_seed(3)
    a = torch.rand(1, 1, side, side, generator=drawn)
    b = 0.6 * a + 0.4 * torch.rand(1, 1, side, side, generator=drawn)
    assert float(ms_ssim(a, b)) == pytest.approx(slow(a[0, 0].tolist(), b[0, 0].tolist(), taps(side, side)), abs=1e-5)


def test_equal_pictures_are_one_and_opposite_ones_zero():
    a, _ = pictures(16, 3)
    assert ms_ssim(a, a).tolist() == pytest.approx([1.0] * 3, abs=1e-6)
    assert ms_ssim(a, 1 - a).tolist() == [0.0] * 3


def test_a_floor_keeps_the_gradient_finite():
    a, _ = pictures(16, 1)
    b = (1 - a).requires_grad_()
    ms_ssim(a, b, floor=1e-4).sum().backward()
    assert bool(torch.isfinite(b.grad).all())


def test_latents_below_eight_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="latents of 4 x 16 are too small .* use at least 64 x 64 pixels"):
        taps(4, 16)
