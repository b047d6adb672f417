import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memguard.detectors import available, get
from memguard.detectors.text_noise_norm import detect, gap_map
from memguard.records import StepEvidence


def evidence(cond, uncond, index=0, **changes) -> StepEvidence:
    facts = {"step": index, "num_steps": 20, "sigma": 14.6, "sigma_max": 14.6, "timestep": 981.0}
    return StepEvidence(**{**facts, "noise_cond": cond, "noise_uncond": uncond, **changes})


def randoms(seed: int, *shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    values = np.random.default_rng(seed).standard_normal((2, *shape)).astype(np.float32)
    return torch.from_numpy(values[0]), torch.from_numpy(values[1])


def reference(cond, uncond, covered=None) -> tuple[list[float], list[float]]:
    """L2 and RMS per image in float64 numpy, image by image and over the covered elements only."""
    norms, means = [], []
    for image in range(len(cond)):
        gap = cond[image].double().numpy() - uncond[image].double().numpy()
        kept = gap[:, covered[image]] if covered is not None else gap
        norms.append(float(np.sqrt((kept.ravel() ** 2).sum())))
        means.append(float(np.sqrt((kept.ravel() ** 2).mean())))
    return norms, means


def test_batch_of_three_on_a_latent_that_is_not_square():
    cond, uncond = randoms(0, 3, 4, 12, 20)
    norms, means = reference(cond, uncond)
    finding = detect([evidence(cond, uncond)])
    assert finding.scores == pytest.approx(norms, rel=1e-6)
    assert finding.rms == pytest.approx(means, rel=1e-6)
    assert finding.scores[0] == pytest.approx(finding.rms[0] * math.sqrt(4 * 12 * 20), rel=1e-6)
    assert finding.status == "ok"
    assert (finding.sigma, finding.timestep, finding.reference) == (14.6, 981.0, "negative")


def test_score_is_the_mean_over_the_scored_steps():
    pairs = [randoms(seed, 2, 4, 8, 8) for seed in (1, 2, 3)]
    finding = detect([evidence(*pair, index=i) for i, pair in enumerate(pairs)])
    each = [reference(*pair)[0] for pair in pairs]
    for row, expected in zip(finding.per_step, each, strict=True):
        assert row == pytest.approx(expected, rel=1e-6)
    assert finding.scores == pytest.approx(np.mean(each, 0), rel=1e-6)


def test_half_precision_predictions_are_compared_in_single_precision():
    cond, uncond = (t.half() for t in randoms(4, 2, 16, 8, 8))
    norms, _ = reference(cond, uncond)
    assert detect([evidence(cond, uncond)]).scores == pytest.approx(norms, rel=1e-6)
    # 300^2 alone overflows float16
    big = detect([evidence(torch.full((1, 4, 8, 8), 300.0).half(), torch.zeros(1, 4, 8, 8).half())])
    assert big.rms == pytest.approx((300.0,), rel=1e-6)


def test_only_covered_elements_count():
    cond, uncond = randoms(5, 2, 4, 8, 8)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[0, :, :4] = True
    mask[1, :, :, :2] = True
    norms, means = reference(cond, uncond, mask[:, 0].numpy())
    finding = detect([evidence(cond, uncond, coverage=mask)])
    assert finding.scores == pytest.approx(norms, rel=1e-6)
    assert finding.rms == pytest.approx(means, rel=1e-6)


def test_one_mask_serves_the_whole_batch_and_hides_what_lies_outside():
    cond, uncond = randoms(6, 3, 4, 8, 8)
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    mask[..., 2:5, 1:7] = True
    expected = detect([evidence(cond, uncond, coverage=mask)])
    spoiled = torch.where(mask, cond, torch.nan)
    assert detect([evidence(spoiled, uncond, coverage=mask)]).rms == expected.rms
    assert expected.rms == pytest.approx(reference(cond, uncond, mask[:, 0].expand(3, 8, 8).numpy())[1], rel=1e-6)


def test_full_coverage_is_no_coverage():
    cond, uncond = randoms(7, 2, 4, 8, 8)
    everywhere = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    assert detect([evidence(cond, uncond, coverage=everywhere)]) == detect([evidence(cond, uncond)])


def test_reasons_instead_of_a_score():
    cond, uncond = randoms(8, 2, 4, 8, 8)
    assert detect([]).status == "no step was recorded"
    nowhere = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    inactive = detect([evidence(cond, uncond), evidence(cond, uncond, index=1, coverage=nowhere)])
    assert (inactive.status, inactive.scores) == ("prompt not active at step 1", ())
    for bad in (torch.nan, torch.inf):
        finding = detect([evidence(torch.full_like(cond, bad), uncond, reference="empty")])
        assert finding.status == "the model's prediction at step 0 holds NaN or infinity"
        assert (finding.scores, finding.rms, finding.reference) == ((), (), "empty")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_image_without_a_score_hides_no_other(bad):
    cond, uncond = randoms(8, 4, 4, 8, 8)
    norms, means = reference(cond, uncond)
    spoiled = cond.clone()
    spoiled[1, 2, 3, 4] = bad
    finding = detect([evidence(spoiled, uncond)])
    others = [0, 2, 3]
    assert math.isnan(finding.scores[1]) and math.isnan(finding.rms[1])
    assert [finding.scores[i] for i in others] == pytest.approx([norms[i] for i in others], rel=1e-6)
    assert finding.mean_rms == pytest.approx(np.mean([means[i] for i in others]), rel=1e-6)
    assert finding.status == "ok"
    assert finding.caveat == "image 2 of 4 has no score: the model's prediction at step 0 holds NaN or infinity"
    covered = torch.ones(4, 1, 8, 8, dtype=torch.bool)
    covered[3] = False
    elsewhere = detect([evidence(cond, uncond, coverage=covered)])
    assert [math.isnan(score) for score in elsewhere.scores] == [False, False, False, True]
    assert elsewhere.caveat == "image 4 of 4 has no score: prompt not active at step 0"


def test_no_gap_at_all_is_no_score():
    """The prompt equal to the negative one, or a schedule whose text begins later: nothing was measured."""
    cond, uncond = randoms(9, 1, 4, 8, 8)
    finding = detect([evidence(cond, cond)])
    assert (finding.scores, finding.rms) == ((), ())
    assert finding.status == (
        "at step 0 the prompt and the negative prompt give the same prediction: they are equal, or the prompt begins "
        "later"
    )
    later = detect([evidence(cond, cond, reference="empty"), evidence(cond, uncond, index=1, reference="empty")])
    assert later.status.startswith("at step 0 the prompt and the empty prompt give the same prediction")
    assert detect([evidence(cond, uncond), evidence(cond, cond, index=1)]).status.startswith("at step 1 the prompt")


@given(st.floats(1e-3, 1e3))
def test_score_grows_with_the_gap_and_forgets_its_sign(factor):
    gap, zero = randoms(10, 2, 4, 8, 8)[0], torch.zeros(2, 4, 8, 8)
    plain = detect([evidence(gap, zero)]).scores
    assert detect([evidence(-factor * gap, zero)]).scores == pytest.approx([factor * s for s in plain], rel=1e-5)


def test_the_map_sums_up_to_the_score():
    cond, uncond = randoms(11, 3, 4, 6, 10)
    step = evidence(cond, uncond)
    squared = gap_map(step)
    assert squared.shape == (3, 6, 10)
    assert (4 * squared.sum((1, 2))).sqrt().tolist() == pytest.approx(detect([step]).scores, rel=1e-6)


def test_every_detector_module_keeps_the_contract():
    assert "text_noise_norm" in available()
    for name, module in available().items():
        assert get(name) is module
        assert name == module.NAME
        assert module.TITLE and isinstance(module.NEEDS, frozenset)
        assert module.detect([]).status != "ok"
