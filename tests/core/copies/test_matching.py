"""The similarity of two stacks of pictures: what it must survive, what it must not confuse, and its promises."""

import numpy as np
import pytest
import torch

from memguard import testbed
from memguard.copies import THRESHOLD, similarity
from memguard.troubles import Refused


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    found = np.stack([each.picture for each in testbed.originals()[:6]])
    return torch.from_numpy(found).permute(0, 3, 1, 2).float() / 255


def others(found: torch.Tensor) -> torch.Tensor:
    return found[~torch.eye(len(found), dtype=torch.bool)]


CHANGES = {
    "none": lambda p: p,
    "mirrored": lambda p: p.flip(3),
    "a corner": lambda p: p[:, :, 20:, 30:],
    "the left part": lambda p: p[:, :, :, :95],
    "mirrored corner": lambda p: p[:, :, :100, 25:].flip(3),
    "small": lambda p: torch.nn.functional.interpolate(p, (40, 56), mode="bilinear", antialias=True),
    "darker and flatter": lambda p: 0.5 * p + 0.1,
    "framed": lambda p: torch.nn.functional.pad(p, (15, 15, 20, 10), value=0.9),
    "noisy": lambda p: p + 0.08 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_copy_is_told_from_other_pictures(pictures, change):
    found = similarity(change(pictures), pictures)
    assert found.shape == (6, 6) and found.dtype == torch.float32
    assert found.diagonal().min() > THRESHOLD > others(found).max()


def test_a_picture_is_its_own_copy(pictures):
    assert similarity(pictures, pictures).diagonal().min() > 0.98
    assert similarity(pictures, pictures).max() <= 1


def test_the_order_of_the_stacks_does_not_matter(pictures):
    cropped = pictures[:5, :, :90, :]
    torch.testing.assert_close(similarity(cropped, pictures), similarity(pictures, cropped).T)


def test_upside_down_is_another_picture(pictures):
    assert similarity(pictures.flip(2), pictures).diagonal().median() < THRESHOLD


def test_one_colour_resembles_nothing(pictures):
    flat = torch.full((1, 3, 50, 50), 0.3)  # 76.5 of 255: rounds both ways
    assert similarity(flat, torch.cat((pictures, torch.ones(1, 3, 128, 128)))).max() < 0.3
    assert similarity(flat, flat).max() < 0.3


def test_many_pictures_are_compared_in_blocks_of_them(pictures, monkeypatch):
    whole = similarity(pictures, pictures[:3])
    monkeypatch.setattr("memguard.copies.alignment.BLOCK", 5)
    monkeypatch.setattr("memguard.copies.matching.PAIRS", 11)
    monkeypatch.setattr("memguard.copies.thumbnails.MOST", 128 * 128 * 3)
    torch.testing.assert_close(similarity(pictures, pictures[:3]), whole)


def test_stacks_may_be_empty(pictures):
    assert similarity(pictures, pictures[:0]).shape == (6, 0)
    assert similarity(pictures[:0], pictures).shape == (0, 6)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (torch.zeros(3, 8, 8), "pictures of shape [3, 8, 8] cannot be compared; give [N, 3, height, width]"),
        (torch.zeros(1, 8, 8, 3), "pictures of shape [1, 8, 8, 3] cannot be compared; give [N, 3, height, width]"),
        (torch.zeros(1, 3, 0, 8), "pictures of shape [1, 3, 0, 8] cannot be compared; give [N, 3, height, width]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "pictures of torch.uint8 cannot be compared; give floats in 0..1"),
        (torch.full((1, 3, 8, 8), float("nan")), "a picture holds values that are no numbers (NaN); decode it again"),
    ],
)
def test_what_cannot_be_compared_is_one_line(pictures, wrong, said):
    with pytest.raises(Refused, match="cannot be compared|NaN") as caught:
        similarity(pictures, wrong)
    assert str(caught.value).startswith(said) and isinstance(caught.value, ValueError)
