"""From a score to a verdict: how a profile is found, and what is said where there is none."""

import logging
from dataclasses import replace

import pytest

from memguard.calibration import Sensitivity, judge, ordinary, save, store
from memguard.detectors.text_noise_norm import detect
from memguard.records import Report

MODEL = "00000000cafe0001"
HAVE = {"model": MODEL, "sigma": 14.6, "steps_scored": 1, "reference": "negative"}


@pytest.fixture
def verdict(step):
    """A function that judges one run of the given RMS scores."""

    def run(*rms, profile=None, sensitivity=99.0, model=MODEL, family="other", detector=None, **changes):
        evidence = [step(*rms, **changes)]
        finding = detect(evidence)
        finding = replace(finding, detector=detector) if detector else finding
        report = Report(run="r1", model=model, family=family)
        return judge(finding, report, evidence, profile, Sensitivity(sensitivity))

    return run


@pytest.mark.parametrize(
    ("rms", "expected"),
    # suspicious from exp(0.2 * 2.326) * 0.01 = 0.01592, memorized from exp(0.2 * 3.326) * 0.01 = 0.01945
    [(0.01, "ordinary"), (0.0158, "ordinary"), (0.0161, "suspicious"), (0.0193, "suspicious"), (0.0196, "memorized")],
)
def test_verdict_by_profile(rms, expected, verdict, profile):
    finding = verdict(rms, profile=profile())
    assert finding.verdict == expected
    assert finding.threshold == pytest.approx(0.015925, rel=1e-4)
    assert finding.threshold_source == "profile of 80 ordinary prompts"
    assert (finding.verdict == "ordinary") == (finding.percentile < 99)


def test_sensitivity_moves_the_threshold(verdict, profile):
    assert verdict(0.0135, profile=profile(), sensitivity=99).verdict == "ordinary"
    finding = verdict(0.0135, profile=profile(), sensitivity=90)
    assert finding.verdict == "suspicious"
    assert finding.zscore == pytest.approx(1.5005, abs=1e-3)
    assert finding.percentile == pytest.approx(93.33, abs=0.01)


def test_a_batch_is_judged_by_its_mean(verdict, profile):
    assert verdict(0.005, 0.03, profile=profile()).verdict == "suspicious"  # mean 0.0175
    assert verdict(0.005, 0.005, profile=profile()).verdict == "ordinary"


def test_a_profile_that_was_asked_for_but_does_not_fit_is_named(verdict, profile):
    finding = verdict(0.05, profile=profile(), model="ffff")
    assert (finding.verdict, finding.percentile) == ("unknown", None)
    assert finding.threshold_source.startswith("uncalibrated: the profile is for model 00000000cafe0001, this is ffff")
    other = verdict(0.05, profile=profile(), detector="attention_entropy")
    assert other.threshold_source == "uncalibrated: the profile has no attention_entropy"


def test_runs_that_do_not_start_from_noise_are_scored_but_not_judged(verdict, profile):
    finding = verdict(0.05, profile=profile(), sigma=5.0)
    assert (finding.verdict, finding.rms) == ("unknown", pytest.approx((0.05,), rel=1e-4))
    assert finding.threshold_source == (
        "uncalibrated: the run starts at sigma 5 of 14.6, not from pure noise"  # img2img
    )


def test_a_host_that_knows_where_a_run_starts_is_believed(verdict, profile):
    few_steps = verdict(0.05, profile=profile(sigma=5.0), sigma=5.0, full_noise=True)
    assert few_steps.verdict == "memorized"
    from_a_picture = verdict(0.05, profile=profile(), full_noise=False)
    assert from_a_picture.threshold_source.startswith("uncalibrated: the run starts at sigma 14.6 of 14.6")
    # the literature's numbers are of the very first noise level
    assert verdict(0.05, family="sd15", latent=(64, 64), sigma=5.0, full_noise=True).verdict == "unknown"


def test_no_score_no_verdict(verdict, profile):
    finding = verdict(float("nan"), profile=profile())
    assert (finding.verdict, finding.threshold, finding.threshold_source) == ("unknown", None, "")


@pytest.mark.parametrize(
    ("rms", "expected"), [(1.5 / 128, "ordinary"), (3.1 / 128, "suspicious"), (5.1 / 128, "memorized")]
)
def test_literature_values_hold_for_sd1_at_512_pixels_only(rms, expected, verdict):
    finding = verdict(rms, family="sd15", latent=(64, 64))
    assert finding.score == pytest.approx(rms * 128, rel=1e-4)  # sqrt(4 * 64 * 64) = 128
    assert (finding.verdict, finding.threshold) == (expected, 3 / 128)
    assert finding.threshold_source == "uncalibrated: literature values for SD1 at 512 px"
    for elsewhere in ({"family": "sdxl", "latent": (64, 64)}, {"family": "sd15", "latent": (96, 64)}):
        other = verdict(rms, **elsewhere)
        assert other.verdict == "unknown"
        assert other.threshold_source == "uncalibrated: no profile for this model; run memguard calibrate"


def test_a_saved_profile_is_found_by_fingerprint(verdict, profile, home):
    path = store.save(profile())
    assert path.parent == home / "profiles"
    assert path.name == f"{MODEL}-8x8-negative-s1-14.6.json"
    assert verdict(0.05).verdict == "memorized"
    assert verdict(0.05, model="ffff").verdict == "unknown"
    assert verdict(0.05, model="").verdict == "unknown"


def test_a_profile_for_other_settings_is_the_reason(verdict, profile):
    store.save(profile(reference="empty"))
    finding = verdict(0.05)
    assert finding.verdict == "unknown"
    assert finding.threshold_source == (
        "uncalibrated: the profile compares with the empty prompt, this run with the negative one"
    )


def test_of_several_profiles_the_nearest_in_size_is_taken(profile):
    for latent in ((16, 16), (64, 64), (128, 128)):
        store.save(profile(latent=latent))
    found = [store.find(HAVE, latent, "text_noise_norm").conditions.latent for latent in ((8, 8), (96, 64), (100, 90))]
    assert found == [(16, 16), (64, 64), (128, 128)]
    assert store.find(HAVE, (64, 64), "attention_entropy") is None


def test_a_host_s_folder_comes_before_the_home(tmp_path, profile):
    store.save(replace(profile(), note="home"))
    store.save(replace(profile(), note="host"), tmp_path / "host")
    store.register(tmp_path / "host")
    store.register(tmp_path / "host")
    assert store.folders()[:2] == [tmp_path / "host", tmp_path / "home" / "profiles"]
    assert store.find(HAVE, (8, 8), "text_noise_norm").note == "host"


def test_a_broken_file_is_one_line_in_the_log_and_hides_no_other(verdict, profile, home, caplog):
    store.save(profile())
    (home / "profiles" / f"{MODEL}-0.json").write_text("{", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "memguard"):
        assert [verdict(0.05).verdict for _ in range(3)] == ["memorized"] * 3
    assert len(caplog.records) == 1
    assert "not a memguard profile" in caplog.text


def test_a_run_that_nobody_watches_finds_what_is_ordinary(profile):
    made = profile()
    save(made)
    suspicious, typical = ordinary(made.conditions.model, 14.6, (8, 8))
    assert typical == pytest.approx(0.01)
    assert suspicious == pytest.approx(made.distributions["text_noise_norm"].threshold(Sensitivity().suspicious))
    assert ordinary(made.conditions.model, 3.0, (8, 8)) == (None, None)
    assert ordinary("00000000cafe0002", 14.6, (8, 8)) == (None, None)
