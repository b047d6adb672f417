"""Descriptions of windows against the formula written out; windows, frames, and the two stages of the search."""

import math

import pytest
import torch

from memguard.copies import alignment, windows
from memguard.copies.spectra import COARSE, FINE, FLAT, GRAIN, describe, describe_grid, mirrored
from memguard.copies.thumbnails import thumbnails

SMALL = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
BOXES = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.1, 0.8, 0.25, 1.0]])


def mean_cosine(start: float, end: float, order: int, pixel: int) -> float:
    """Return the integral of sqrt(2) cos(pi k u) over what a pixel covers of an interval, by many small steps."""
    if order == 0:
        return max(0.0, min(end, (pixel + 1) / 32) - max(start, pixel / 32)) / (end - start)
    total, steps = 0.0, 100
    for step in range(steps):
        place = ((pixel + (step + 0.5) / steps) / 32 - start) / (end - start)
        if 0 <= place <= 1:
            total += math.sqrt(2) * math.cos(math.pi * order * place) / (steps * 32 * (end - start))
    return total


def test_a_number_of_a_description_is_the_weighed_root_of_a_cosine_transform():
    found = describe(SMALL, BOXES, COARSE)[1, 1]
    top, bottom, left, right = BOXES[1].tolist()
    values = SMALL[1].double()
    values = values - values.mean((1, 2), keepdim=True)
    expected = []
    for channel, count in ((0, 7), (1, 4), (2, 4)):
        for down in range(count):
            for across in range(count):
                if down == across == 0:
                    continue
                rows = torch.tensor([mean_cosine(top, bottom, down, pixel) for pixel in range(32)]).double()
                columns = torch.tensor([mean_cosine(left, right, across, pixel) for pixel in range(32)]).double()
                amplitude = float(rows @ values[channel] @ columns)
                expected.append(amplitude / math.sqrt(abs(amplitude) + GRAIN) * math.sqrt(math.hypot(down, across)))
    norm = math.sqrt(sum(each**2 for each in expected) + FLAT**2)
    torch.testing.assert_close(found, torch.tensor(expected) / norm, atol=2e-3, rtol=0)
    assert len(found) == COARSE.size == 78 and FINE.size == 381


@pytest.mark.parametrize("shape", [COARSE, FINE])
def test_a_mirror_image_has_other_signs(shape):
    box = torch.tensor([[0.1, 0.8, 0.0, 1.0]])
    found = describe(SMALL.flip(3), box, shape)
    torch.testing.assert_close(found, describe(SMALL, box, shape) * mirrored(shape), atol=1e-5, rtol=0)


def test_a_grid_is_its_windows_one_by_one():
    grid = describe_grid(SMALL, windows.intervals(windows.FEW), COARSE)
    torch.testing.assert_close(grid, describe(SMALL, windows.boxes(windows.FEW), COARSE), atol=1e-5, rtol=0)
    each = describe(SMALL, BOXES.expand(3, -1, -1), FINE)
    torch.testing.assert_close(each, describe(SMALL, BOXES, FINE), atol=1e-6, rtol=0)


def test_windows_are_70_to_100_percent_of_each_side_and_inside():
    for lengths, count in ((windows.FEW, 36), (windows.MANY, 225)):
        found = windows.boxes(lengths)
        assert found.shape == (count, 4) and found[0].tolist() == [0, 1, 0, 1]
        assert len(found.unique(dim=0)) == count and found.min() >= 0 and found.max() <= 1 + 1e-6
        sizes = found[:, [1, 3]] - found[:, [0, 2]]
        assert sizes.min() == pytest.approx(lengths[-1], abs=1e-6)


def test_a_frame_is_seen_and_its_depth():
    framed = SMALL.clone()
    framed[0] = 200
    framed[0, :, 4:29, 6:30] = SMALL[0, :, 4:29, 6:30]
    framed[1, :, :, :3] = 10
    found = windows.inside(framed) * 32
    assert found[0].tolist() == [4, 29, 6, 30]
    assert found[1].tolist() == [0, 32, 3, 32]
    assert found[2].tolist() == [0, 32, 0, 32]
    assert windows.inside(torch.full((1, 3, 32, 32), 9, dtype=torch.uint8)).mul(32).tolist() == [[12, 20, 12, 20]]


def test_thumbnails_are_brightness_and_colour_differences_of_jpeg():
    picture = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 40, 50)
    assert thumbnails(picture)[0, :, 3, 7].tolist() == [76, 85, 255]
    assert thumbnails(torch.full((1, 3, 40, 50), 2.0))[0, :, 3, 7].tolist() == [255, 128, 128]
    half = torch.zeros(1, 3, 64, 96)
    half[..., 48:] = 1
    assert thumbnails(half)[0, 0, 5].float().diff().sign().unique().tolist() == [0, 1]


def test_coarse_values_are_the_best_window_of_either_picture():
    few = alignment.views(SMALL, windows.FEW)
    found = alignment.coarse(few, few[torch.tensor([2, 0])])
    described, signs = few.described.float() / alignment.LEVELS, mirrored(COARSE)
    for row in range(3):
        for column, other in enumerate((2, 0)):
            pairs = [(described[row, 0], described[other]), (described[other, 0], described[row])]
            best = max(float((many @ (one * each)).max()) for one, many in pairs for each in (1, signs))
            assert float(found[row, column]) == pytest.approx(best, abs=1e-5)


def test_a_window_beside_the_grid_is_moved_to_its_place():
    generator = torch.Generator().manual_seed(5)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 9, generator=generator), (400, 400), mode="bicubic")
    crop = picture[:, :, 37:371, 61:352]
    pair = alignment.views(thumbnails(crop)), alignment.views(thumbnails(picture))
    there, back = alignment.align(*pair), alignment.align(*pair[::-1])
    assert float(there) > 0.97 and torch.equal(there, back)
