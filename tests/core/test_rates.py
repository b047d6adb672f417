"""What a number of ordinary prompts can show: cuts, their rates, and Clopper and Pearson's bound."""

import math
import random

import pytest

from memguard.calibration.rates import at, bound, cut, needed


@pytest.mark.parametrize(
    ("rate", "count", "allowed"),
    [
        (1 - 99 / 100, 320, 2),  # 3 / 321 is 0.93 %
        (1 - 95 / 100, 320, 15),  # 16 / 321 is 4.98 %
        (1 - 99 / 100, 99, 0),  # 1 / 100, just enough
        (1 - 99 / 100, 98, None),
        (1 - 99.9 / 100, 999, 0),
        (1 - 99.9 / 100, 998, None),
        (1 - 90 / 100, 9, 0),  # 1 - 0.9 is less than 0.1 in floating point
        (1.0, 60, 59),
    ],
)
def test_a_cut_has_the_largest_rank_whose_rate_is_at_most_the_asked_one(rate, count, allowed):
    found = cut(rate, count)
    assert (None if found is None else found.allowed) == allowed
    if found is not None:
        assert found.rate == pytest.approx((allowed + 1) / (count + 1)) and found.rate <= rate + 1e-9


def test_how_many_prompts_a_rate_takes():
    for percentile, prompts in ((90, 9), (95, 19), (99, 99), (99.9, 999), (99.99, 9999)):
        rate = 1 - percentile / 100
        assert needed(rate) == prompts
        assert cut(rate, prompts) is not None and cut(rate, prompts - 1) is None


@pytest.mark.parametrize(
    ("above", "count", "expected"),
    # 1 - 0.05 ** (1 / n) for none; the others as tables of the beta distribution have them
    [(0, 320, 1 - 0.05 ** (1 / 320)), (2, 320, 0.019538), (15, 320, 0.071222), (1, 10, 0.394163), (5, 5, 1.0)],
)
def test_the_bound_is_clopper_and_pearson_s(above, count, expected):
    assert bound(above, count) == pytest.approx(expected, rel=1e-3)
    assert at(above, count).bound == bound(above, count)


def test_the_bound_holds_in_95_of_100_profiles():
    """Of uniform scores the true rate of a cut is 1 minus the score at it."""
    draw = random.Random(0)
    found = cut(0.01, 320)
    true = [1 - sorted(draw.random() for _ in range(320))[-1 - found.allowed] for _ in range(2000)]
    assert math.fsum(true) / len(true) == pytest.approx(found.rate, rel=0.05)
    assert sum(rate <= found.bound for rate in true) / len(true) == pytest.approx(0.95, abs=0.012)
