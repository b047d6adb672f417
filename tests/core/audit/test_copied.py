"""Which training pictures come out: by a threshold, above the controls, and not nearer to what was held out."""

import numpy as np
import pytest

from memguard.audit.copied import matches
from memguard.calibration import rates


def likeness(trained=3, held=2, images=2):
    return np.full((trained + held, images, trained + held), 0.2, np.float32)


def test_a_copy_is_named_and_how_often():
    s = likeness()
    s[0, 1, 0] = 0.9
    found = matches(s, 3, 0.7)
    assert found.copied == (0,)
    assert found.source.tolist() == [[-1, 0], [-1, -1], [-1, -1]]
    assert found.own[0].tolist() == pytest.approx([0.2, 0.9])
    assert found.threshold.value == 0.7 and found.threshold.highest == pytest.approx(0.2)
    assert found.threshold.bound == rates.bound(0, 2)


def test_the_threshold_itself_is_no_copy():
    s = likeness()
    s[0, 0, 0] = 0.7
    assert matches(s, 3, float(np.float32(0.7))).copied == ()


def test_what_held_out_captions_reach_without_copying_is_no_copy():
    s = likeness()
    s[0, 0, 0], s[1, 0, 1], s[4, 1, 4] = 0.8, 0.9, 0.85
    found = matches(s, 3, 0.7)
    assert found.copied == (1,) and found.threshold.value == pytest.approx(0.85)


def test_a_picture_nearer_to_a_held_out_one_is_no_copy():
    s = likeness()
    s[0, 0, 0], s[0, 0, 3] = 0.8, 0.9
    assert matches(s, 3, 0.7).copied == ()


def test_other_captions_can_bring_a_picture():
    s = likeness()
    s[0, 0, 2] = s[3, 1, 1] = 0.9
    found = matches(s, 3, 0.7)
    assert found.copied == (1, 2)
    assert found.source[0, 0] == 2 and found.astray.tolist() == [[-1, 1], [-1, -1]]


def test_near_duplicates_are_no_other_picture():
    s = likeness()
    s[0, 0, :2] = 0.9
    assert matches(s, 3, 0.7).other[0, 0] == pytest.approx(0.9)
    found = matches(s, 3, 0.7, np.array([0, 0, 2]))
    assert found.other[0, 0] == pytest.approx(0.2) and found.other_index[0, 0] in (2, 3, 4)


def test_without_held_out_pictures_the_floor_is_the_threshold():
    s = likeness(held=0)
    s[2, 0, 2] = 0.75
    found = matches(s, 3, 0.7)
    assert found.copied == (2,) and found.threshold.bound is None and found.astray.shape == (0, 2)
