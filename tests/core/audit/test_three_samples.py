"""The three-sample test: its formulas, p-values that are uniform under the null, and what it says of copies."""

import numpy as np
import pytest

from memguard.audit.three_samples import cells_of, three_samples, u_statistic, z_score


def distances(a, b):
    return np.linalg.norm(a[..., None, :] - b, axis=-1)


def case(rng, trained, held, images=2, copies=0.0, size=6):
    """Pairs whose generated pictures lie anywhere near nothing, but for a share that are the picture itself."""
    real = rng.normal(size=(trained + held, size))
    generated = 0.7 * rng.normal(size=(trained + held, images, size)) + 0.3
    copied = np.arange(trained + held) < copies * trained
    generated[copied] = real[copied, None] + 0.02 * rng.normal(size=(copied.sum(), images, size))
    return distances(real, real), distances(generated, real)


def test_u_and_z_are_the_paper_s():
    generated, held = np.array([1.0, 2.0, 5.0]), np.array([2.0, 3.0])
    by_pairs = sum((q > p) + (q == p) / 2 for q in generated for p in held)
    assert u_statistic(generated, held) == by_pairs == 2.5
    assert z_score(2.5, 3, 2) == pytest.approx((2.5 - 3) / np.sqrt(3 * 2 * 6 / 12))
    assert z_score(0.0, 0, 5) == 0.0


def test_u_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 30).astype(float), rng.integers(0, 9, 20).astype(float)
    assert u_statistic(a, b) == stats.mannwhitneyu(a, b).statistic


def test_copies_are_far_below_zero_and_the_smallest_p_that_the_deals_allow():
    real, generated = case(np.random.default_rng(1), 24, 24, copies=1.0)
    found = three_samples(real, generated, 24, deals=199)
    assert found.form == "held-out" and (found.trained, found.held, found.generated) == (24, 24, 48)
    assert found.u == 0 and found.z == pytest.approx(z_score(0, 48, 24)) and found.z < -5
    assert found.p == pytest.approx(1 / 200)


def test_a_few_copies_are_seen_by_the_own_pictures_and_none_are_not():
    rng = np.random.default_rng(2)
    few = three_samples(*case(rng, 24, 24, copies=0.25), 24, deals=199)
    none = three_samples(*case(rng, 24, 24), 24, deals=199)
    assert few.own_p < 0.05 < none.own_p
    assert few.own_p < few.p


def test_p_values_are_uniform_under_the_null_although_generated_pictures_are_not_like_real_ones():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    found = [three_samples(*case(rng, 10, 14), 10, deals=99, seed=i) for i in range(60)]
    for p in ([each.p for each in found], [each.own_p for each in found]):
        assert stats.kstest(p, "uniform").pvalue > 0.05
    # the paper's normal approximation is far from uniform here: the model draws in its own way
    assert stats.kstest(stats.norm.cdf([each.z for each in found]), "uniform").pvalue < 1e-4


def test_without_held_out_pictures_there_is_no_p_and_a_reason():
    real, generated = case(np.random.default_rng(4), 12, 0, copies=1.0)
    found = three_samples(real, generated, 12)
    assert found.form == "leave-one-out" and found.p is None and found.z < -4
    others = (real + np.diag([np.inf] * 12)).min(1)
    assert found.u == u_statistic(generated.min(2).ravel(), others)
    assert "cannot tell copying from a model that has learnt a narrow subject" in found.note


def test_cells_tell_where_the_copies_are():
    rng = np.random.default_rng(5)
    side = np.arange(40) % 2
    place = 40.0 * side[:, None] + rng.normal(size=(40, 3))
    drawn = place[:, None] + rng.normal(size=(40, 3, 3))
    copied = (np.arange(40) < 20) & (side == 0)
    drawn[copied] = place[copied, None] + 0.01
    found = three_samples(distances(place, place), distances(drawn, place), 20, side, deals=19)
    first, second = found.cells
    assert first.pictures == tuple(range(0, 20, 2)) and second.pictures == tuple(range(1, 20, 2))
    assert (first.generated, first.held, second.generated, second.held) == (30, 10, 30, 10)
    assert first.z == z_score(0, 30, 10) < -4 < second.z
    assert found.average == pytest.approx((first.z + second.z) / 2)


def test_a_cell_with_few_held_out_pictures_has_no_z_and_is_not_averaged():
    real, generated = case(np.random.default_rng(7), 6, 6)
    cells = np.array([0, 0, 0, 1, 1, 1, *[0] * 6])
    real[6:, 3:6], real[6, 3] = 99, 0  # one held-out picture alone lies in the second cell
    found = three_samples(real, generated, 6, cells, deals=19)
    assert found.cells[1].held == 1 and found.cells[1].z is None
    assert found.average == pytest.approx(found.cells[0].z)


def test_cells_are_k_means_of_the_training_pictures():
    pytest.importorskip("scipy")
    looks = np.repeat([[0.0, 0.0], [9.0, 9.0]], 10, 0) + np.random.default_rng(0).normal(size=(20, 2))
    found = cells_of(looks[[*range(6), *range(10, 16), 8, 18]], 12)
    assert len(set(found[[0, 1, 2, 3, 4, 5, 12]])) == len(set(found[[6, 7, 8, 9, 10, 11, 13]])) == 1
    assert found[0] != found[6]


def test_few_pictures_have_no_cells_and_few_held_out_ones_a_note():
    assert cells_of(np.zeros((11, 2)), 11) is None
    real, generated = case(np.random.default_rng(6), 8, 5)
    assert "5 held-out pictures are few" in three_samples(real, generated, 8, deals=19).note
