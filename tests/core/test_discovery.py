"""Discoveries among many prompts: formulas by hand, and the rates that they promise by simulation."""

import math
import random
from bisect import bisect_left
from collections import Counter

import pytest

from memguard.calibration import Distribution
from memguard.calibration.discovery import adjusted, calibration_needed, ordinary_share, ties_needed
from memguard.calibration.profile import ProfileError


def test_q_values_are_benjamini_and_hochberg_s():
    # by hand: m p / rank of .01, .02, .03, .04, .9 is .05, .05, .05, .05, .9; of .5 among them nothing smaller comes
    assert adjusted(Counter([0.01, 0.02, 0.03, 0.04, 0.9])) == pytest.approx(
        {0.01: 0.05, 0.02: 0.05, 0.03: 0.05, 0.04: 0.05, 0.9: 0.9}
    )
    assert adjusted(Counter([0.01, 0.04, 0.5])) == pytest.approx({0.01: 0.03, 0.04: 0.06, 0.5: 0.5})
    assert adjusted({0.01: 2, 0.9: 2}) == pytest.approx({0.01: 0.02, 0.9: 0.9})  # ties share a rank, the last
    assert adjusted({0.01: 2, 0.9: 2}, 0.5) == pytest.approx({0.01: 0.01, 0.9: 0.45})
    assert adjusted({1.0: 3}) == {1.0: 1.0}
    assert adjusted({}) == {}


def test_q_values_equal_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(0)
    values = [round(draw.random() ** 3 * 0.99, 2) + 0.001 for _ in range(300)]
    found = adjusted(Counter(values))
    assert [found[p] for p in values] == pytest.approx(list(stats.false_discovery_control(values)))


def test_the_share_is_storey_s():
    assert ordinary_share({0.1: 50, 0.6: 20, 0.9: 9}) == pytest.approx((1 + 29) / (79 * 0.5))
    assert ordinary_share({0.1: 50, 0.6: 20, 0.9: 9}, above=0.8) == pytest.approx((1 + 9) / (79 * 0.2))
    assert ordinary_share({0.9: 10}) == 1.0
    assert ordinary_share({}) == 1.0


def test_what_a_number_of_ordinary_prompts_supports():
    """The issue in one number: 320 ordinary prompts, a million tests, a rate of 10 %."""
    assert ties_needed(1_000_000, 320, 0.1) == 31_153
    for tests, count, rate, ordinary in ((1000, 320, 0.1, 1.0), (1_000_000, 320, 0.1, 0.9), (50, 99, 0.05, 1.0)):
        needed, least = ties_needed(tests, count, rate, ordinary), 1 / (count + 1)
        assert adjusted({least: needed, 1.0: tests - needed}, ordinary)[least] <= rate + 1e-9
        if needed > 1:
            fewer = adjusted({least: needed - 1, 1.0: tests - needed + 1}, ordinary)
            assert fewer[least] > rate
        enough = calibration_needed(tests, needed, rate, ordinary)
        assert ties_needed(tests, enough, rate, ordinary) <= needed
        assert enough == 1 or ties_needed(tests, enough - 1, rate, ordinary) > needed


def simulated(rng, count, ordinary, copies, effect, rate, estimate):
    """Return false discoveries, discoveries, and the share used, of one calibration and one list."""
    scores = sorted(rng.gauss(0, 1) for _ in range(count))
    given = [(rng.gauss(0, 1), False) for _ in range(ordinary)] + [(rng.gauss(effect, 1), True) for _ in range(copies)]
    p_values = [((1 + count - bisect_left(scores, score)) / (count + 1), copy) for score, copy in given]
    counts = Counter(p for p, _ in p_values)
    share = ordinary_share(counts) if estimate else 1.0
    q_values = adjusted(counts, share)
    found = [copy for p, copy in p_values if q_values[p] <= rate]
    return found.count(False), len(found), share


@pytest.mark.parametrize("estimate", [False, True])
@pytest.mark.parametrize("copies", [0, 40])
def test_the_false_discovery_rate_is_kept(copies, estimate):
    """The mean over 400 calibrations and lists, within three standard errors; and it is used, not only kept."""
    rng, rate, ordinary = random.Random(1), 0.2, 160
    shares, proportions, powers = [], [], []
    for _ in range(400):
        false, found, share = simulated(rng, 200, ordinary, copies, 4.0, rate, estimate)
        shares.append(share)
        proportions.append(false / max(found, 1))
        powers.append((found - false) / copies if copies else 0.0)
    mean = math.fsum(proportions) / len(proportions)
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in proportions)) / len(proportions)
    assert mean <= rate + 3 * error
    if copies:
        expected = rate * ordinary / (ordinary + copies) * (1 if not estimate else (ordinary + copies) / ordinary)
        assert mean > 0.75 * expected
        assert math.fsum(powers) / len(powers) > 0.9
        if estimate:
            assert math.fsum(shares) / len(shares) == pytest.approx(0.8, abs=0.05)


def sifted(rng, count, ordinary, copies, promote, rate, same, left=1.0):
    """Return what is found with and without a pre-scan, and who is promoted, of one calibration and one list.

    Args:
        rng: of the draws.
        count: ordinary prompts, each scored at both sizes.
        ordinary: prompts of the list.
        copies: of the list.
        promote: share of ordinary prompts.
        rate: false-discovery rate.
        same: correlation of a prompt's scores at the two sizes.
        left: p-value of those that are not promoted; None leaves them out of the count.

    """

    def scores(shift):
        common, own = math.sqrt(same), math.sqrt(1 - same)
        z = rng.gauss(0, 1)
        # at the smaller size a copy stands out half as far
        return [effect + common * z + own * rng.gauss(0, 1) for effect in (shift, shift / 2)]

    known = [sorted(each) for each in zip(*(scores(0) for _ in range(count)), strict=True)]
    given = [(scores(0), False) for _ in range(ordinary)] + [(scores(4.0), True) for _ in range(copies)]
    p_values = [
        [(1 + count - bisect_left(among, score)) / (count + 1) for among, score in zip(known, both, strict=True)]
        for both, _ in given
    ]
    promoted = [small <= promote for _, small in p_values]
    whole = [full for full, _ in p_values]
    combined = [full if goes else left for full, goes in zip(whole, promoted, strict=True)]

    def found(values):
        q_values = adjusted(Counter(p for p in values if p is not None))
        return [p is not None and q_values[p] <= rate for p in values]

    return found(combined), found(whole), promoted


@pytest.mark.parametrize("same", [0.0, 0.6, 0.95])
def test_a_pre_scan_keeps_the_false_discovery_rate_and_costs_what_it_does_not_promote(same):
    rng, rate, ordinary, copies = random.Random(2), 0.2, 160, 40
    proportions, lost, missed = [], [], []
    for _ in range(300):
        found, plain, promoted = sifted(rng, 200, ordinary, copies, 0.1, rate, same)
        assert not any(one and not other for one, other in zip(found, plain, strict=True))
        proportions.append(sum(found[:ordinary]) / max(sum(found), 1))
        lost.append((sum(plain[ordinary:]) - sum(found[ordinary:])) / copies)
        missed.append(sum(a and not b for a, b in zip(plain[ordinary:], promoted[ordinary:], strict=True)) / copies)
    mean = math.fsum(proportions) / len(proportions)
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in proportions)) / len(proportions)
    assert mean <= rate + 3 * error
    # copies that the pre-scan does not promote, and a few whose q-value rises because there are fewer of them
    assert 0.1 < math.fsum(missed) / len(missed) <= math.fsum(lost) / len(lost) < 0.03 + math.fsum(missed) / len(missed)


def test_those_that_a_pre_scan_left_out_must_be_counted():
    """Of the promoted ones alone, ordinary prompts have small p-values, and the rate is not kept."""
    rng, rate, ordinary = random.Random(3), 0.2, 160
    proportions = []
    for _ in range(300):
        found, _, _ = sifted(rng, 200, ordinary, 10, 0.1, rate, 0.95, left=None)
        proportions.append(sum(found[:ordinary]) / max(sum(found), 1))
    assert math.fsum(proportions) / len(proportions) > rate + 0.1


def exponential(count):
    """Ordinary prompts whose scores have the quantiles of an exponential distribution."""
    return Distribution(tuple(-math.log(1 - (i + 0.5) / count) for i in range(count)))


def test_a_tail_goes_on_where_ranks_end():
    stats = pytest.importorskip("scipy.stats")
    from memguard.calibration.tail import fit_tail

    among = exponential(1000)
    tail = fit_tail(among)
    assert tail.count == 100
    assert tail.shape == pytest.approx(0, abs=0.1)
    assert tail.scale == pytest.approx(1, rel=0.1)
    assert tail.p_value(among.scores[500]) is None
    assert tail.p_value(tail.start) is None
    assert tail.p_value(tail.start + 1e-9) == pytest.approx(among.p_value(tail.start + 1e-9), rel=0.02)
    for score in (3.0, 5.0, 9.0):
        assert tail.p_value(score) == pytest.approx(math.exp(-score), rel=0.5)
    assert 0 < tail.p_value(1e6) < 1e-30
    sf = stats.genpareto.sf(7.0 - tail.start, tail.shape, scale=tail.scale)
    assert tail.p_value(7.0) == pytest.approx(tail.share * sf, rel=0.02)
    many = [tail.p_value(2.5 + i / 10_000) for i in range(100_000)]
    assert all(a >= b for a, b in zip(many, many[1:], strict=False))
    assert len(set(many)) < 10_000  # so that counts stay small


def test_a_tail_never_ends():
    """Scores of a bounded distribution fit a negative shape; a p-value of 0 would follow from it."""
    pytest.importorskip("scipy")
    from memguard.calibration.tail import fit_tail

    tail = fit_tail(Distribution(tuple((i + 0.5) / 400 for i in range(400))))
    assert tail.shape == 0.0
    assert 0 < tail.p_value(1.5) < 1e-4


def test_a_heavy_tail_is_fitted_as_one():
    pytest.importorskip("scipy")
    from memguard.calibration.tail import fit_tail

    pareto = Distribution(tuple((1 - (i + 0.5) / 2000) ** -0.5 for i in range(2000)))  # P(score > x) = x ** -2
    tail = fit_tail(pareto)
    assert tail.shape == pytest.approx(0.5, abs=0.15)
    assert tail.p_value(100.0) == pytest.approx(1e-4, rel=0.7)


def test_a_tail_needs_two_hundred_ordinary_prompts():
    pytest.importorskip("scipy")
    from memguard.calibration.tail import fit_tail

    with pytest.raises(ProfileError, match="199 ordinary prompts; a tail needs at least 200"):
        fit_tail(exponential(199))
    with pytest.raises(ProfileError, match="so they have no tail"):
        fit_tail(Distribution((*range(1, 151), *(150,) * 50)))
