"""The figures of the published tables: ties, bounds, and intervals of samples that are separated perfectly."""

import itertools

import numpy as np
import pytest

from memguard.bench.roc import Estimate, auc, bootstrap, tpr_at_fpr


def pairs(positives, negatives):
    """Return the AUC by its definition, pair by pair."""
    every = [1.0 if p > n else 0.5 if p == n else 0.0 for p, n in itertools.product(positives, negatives)]
    return sum(every) / len(every)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [
        ([2, 3], [0, 1], 1.0),
        ([0, 1], [2, 3], 0.0),
        ([1, 1], [1, 1], 0.5),  # ties count half
        ([1, 2], [1, 0], 0.875),
        ([2, 2, 5], [1, 2, 3, 4], (2 * 1.5 + 4) / 12),
    ],
)
def test_the_auc_counts_pairs_and_ties_half(positives, negatives, expected):
    assert auc(np.array(positives), np.array(negatives)) == pytest.approx(expected)
    assert pairs(positives, negatives) == pytest.approx(expected)


def test_the_auc_of_many_scores_with_ties_is_that_of_the_pairs():
    draw = np.random.default_rng(0)
    positives, negatives = draw.integers(2, 9, 40), draw.integers(0, 7, 70)
    assert auc(positives, negatives) == pytest.approx(pairs(positives, negatives))


@pytest.mark.parametrize(
    ("rate", "expected"),
    # of 100 negatives 0..99, 1 % may be exceeded by one: the threshold is 98, and what equals it is not above it
    [(0.01, 2 / 4), (0.0, 1 / 4), (0.009, 1 / 4), (0.02, 3 / 4), (0.03, 4 / 4)],
)
def test_the_true_positive_rate_is_at_a_rate_that_is_not_exceeded(rate, expected):
    negatives = np.arange(100.0)
    positives = np.array([97.0, 98.0, 99.0, 100.0])
    assert tpr_at_fpr(positives, negatives, rate) == pytest.approx(expected)
    threshold = np.sort(negatives)[::-1][int(np.floor(rate * 100 + 1e-9))]
    assert (negatives > threshold).mean() <= rate + 1e-9


def test_tied_negatives_keep_the_rate():
    negatives = np.array([0.0] * 50 + [5.0] * 50)
    assert tpr_at_fpr(np.array([5.0, 6.0]), negatives, 0.1) == 0.5  # a threshold below 5 would let half of them through


def test_a_rate_that_floating_point_makes_a_little_smaller_counts_in_full():
    assert 0.29 * 100 < 29
    assert tpr_at_fpr(np.array([70.5]), np.arange(100.0), 0.29) == 1.0


def test_the_default_rate_is_one_percent():
    negatives, positives = np.arange(200.0), np.array([197.5, 198.5])
    assert tpr_at_fpr(positives, negatives) == tpr_at_fpr(positives, negatives, 0.01) == 1.0
    assert tpr_at_fpr(positives, np.arange(99.0) + 100) == 0.5  # of fewer than 100, none may be exceeded


def test_a_perfect_separation_has_the_bound_of_a_proportion_that_never_failed():
    found = bootstrap(auc, np.arange(20) + 100, np.arange(50))
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(0.05 ** (1 / 20))
    assert bootstrap(auc, np.arange(50) + 100, np.arange(20)).low == pytest.approx(0.05 ** (1 / 20))


def test_the_bootstrap_covers_the_sampling_error():
    draw = np.random.default_rng(1)
    positives, negatives = draw.normal(1, 1, 200), draw.normal(0, 1, 200)
    found = bootstrap(auc, positives, negatives)
    assert found.value == pytest.approx(auc(positives, negatives))
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.024, rel=0.15)  # Hanley and McNeil's standard error
    assert bootstrap(auc, positives, negatives) == found != bootstrap(auc, positives, negatives, seed=1)


@pytest.mark.parametrize(("positives", "negatives"), [([], [1.0]), ([1.0], []), ([], [])])
def test_an_empty_sample_has_no_figures(positives, negatives):
    with pytest.raises(ValueError, match="at least one positive and one negative score"):
        bootstrap(auc, positives, negatives)


def test_an_estimate_is_written_with_its_interval():
    assert str(Estimate(0.12345, 0.1, 1.0)) == "0.123 [0.100, 1.000]"
