"""From a score to a verdict: how a profile is found, and what is said where there is none."""

import logging
import math
import statistics
from dataclasses import replace

import pytest

from memguard.calibration import Have, Sensitivity, judge, negative_of, ordinary, save, store, together
from memguard.detectors.text_noise_norm import NAME as NORM
from memguard.detectors.text_noise_norm import detect
from memguard.records import Report

MODEL = "00000000cafe0001"
HAVE = Have(MODEL, 14.6, 1, "negative", (8, 8), "empty", 1)


@pytest.fixture
def verdict(step):
    """A function that judges one run of the given RMS scores, by default against the empty negative prompt."""

    def run(*rms, profile=None, sensitivity=99.0, model=MODEL, family="other", detector=None, negative="", **changes):
        evidence = [step(*rms, **changes)]
        finding = detect(evidence)
        finding = replace(finding, detector=detector) if detector else finding
        report = Report(run="r1", model=model, family=family, negative_prompt=negative)
        return judge(finding, report, evidence, profile, Sensitivity(sensitivity))

    return run


def between(scores, above):
    """Return an RMS above all but this many of the scores."""
    ranked = sorted(scores, reverse=True)
    return ranked[0] * 1.01 if above == 0 else math.sqrt(ranked[above - 1] * ranked[above])


@pytest.mark.parametrize(
    ("sensitivity", "above", "expected"),
    # of 320, 99 allows 2 at least as high (3/321), a third of its rate none (1/321); 95 allows 15 (16/321) and 4
    [
        (99, 3, "ordinary"),
        (99, 2, "suspicious"),
        (99, 1, "suspicious"),
        (99, 0, "memorized"),
        (95, 16, "ordinary"),
        (95, 15, "suspicious"),
        (95, 5, "suspicious"),
        (95, 4, "memorized"),
        (99.9, 1, "ordinary"),
        (99.9, 0, "suspicious"),
    ],
)
def test_verdict_by_rank(sensitivity, above, expected, verdict, profile):
    made = profile()
    scores = made.distributions["text_noise_norm"].scores
    finding = verdict(between(scores, above), profile=made, sensitivity=sensitivity)
    assert finding.verdict == expected
    assert (finding.below, finding.count) == (320 - above, 320)
    assert finding.p_value == pytest.approx((1 + above) / 321)
    assert finding.percentile == pytest.approx(100 * (320 - above) / 321)
    assert finding.threshold_source == "profile of 320 ordinary prompts"
    assert finding.typical == pytest.approx(0.01, rel=1e-3)
    assert (finding.mean_rms > finding.threshold) == (expected != "ordinary")
    scale = statistics.NormalDist().inv_cdf(1 - (above + 0.5) / 320)
    assert finding.zscore == pytest.approx(scale, abs=0.35)


def test_a_verdict_states_its_rate_and_how_sure_that_is(verdict, profile):
    flagged, grave = verdict(0.0172, profile=profile()), verdict(0.05, profile=profile())
    assert (flagged.verdict, grave.verdict) == ("suspicious", "memorized")
    assert (flagged.rate, grave.rate) == (pytest.approx(3 / 321), pytest.approx(1 / 321))
    assert flagged.flag_rate == grave.flag_rate == flagged.rate
    assert (flagged.rate_bound, grave.rate_bound) == (pytest.approx(0.0195, abs=1e-4), pytest.approx(0.0093, abs=1e-4))
    assert flagged.caveat == ""


def test_a_rate_that_the_prompts_cannot_show_is_said(verdict, profile):
    finding = verdict(0.05, profile=profile(), sensitivity=99.9)
    assert finding.caveat == (
        "320 ordinary prompts cannot show a rate of 0.1 %, that takes 999; "
        "what is above all of them is flagged, which is 0.31 %"
    )
    assert finding.rate == pytest.approx(1 / 321)
    few = verdict(0.05, profile=profile(count=60))
    assert few.verdict == "suspicious" and few.caveat.startswith(
        "60 ordinary prompts cannot show a rate of 1 %, that t"
    )
    enough = verdict(0.05, profile=profile(count=2999), sensitivity=99.9)
    assert (enough.verdict, enough.caveat) == ("memorized", "")


def test_sensitivity_moves_the_threshold(verdict, profile):
    assert verdict(0.0135, profile=profile(), sensitivity=99).verdict == "ordinary"
    assert verdict(0.0135, profile=profile(), sensitivity=90).verdict == "suspicious"


def test_a_batch_is_judged_by_its_mean(verdict, profile):
    assert verdict(0.005, 0.029, profile=profile()).verdict == "suspicious"  # mean 0.017
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


@pytest.mark.parametrize(("share", "judged"), [(0.7, True), (0.699, False)])
def test_a_run_starts_from_noise_at_seven_tenths_of_the_largest_sigma(share, judged, verdict, profile):
    finding = verdict(0.05, profile=profile(sigma=14.6 * share), sigma=14.6 * share)
    assert (finding.verdict == "memorized") == judged


@pytest.mark.parametrize(
    ("l2", "sensitivity", "expected"),
    [
        (2.99, 99, "ordinary"),
        (3.01, 99, "suspicious"),
        (4.99, 99, "suspicious"),
        (5.01, 99, "memorized"),
        # 1.5 * exp(ln 2 * z / 2.326) is 2.45 at 95 and 3.77 at 99.9
        (2.44, 95, "ordinary"),
        (2.46, 95, "suspicious"),
        (4.07, 95, "suspicious"),
        (4.1, 95, "memorized"),
        (3.76, 99.9, "ordinary"),
        (3.78, 99.9, "suspicious"),
    ],
)
def test_the_literature_s_values_and_what_sensitivity_makes_of_them(l2, sensitivity, expected, verdict):
    finding = verdict(l2 / 128, family="sd15", latent=(64, 64), sensitivity=sensitivity)
    assert finding.score == pytest.approx(l2, rel=1e-4)  # sqrt(4 * 64 * 64) = 128
    assert finding.verdict == expected
    assert finding.typical == 1.5 / 128
    assert finding.threshold_source == "uncalibrated: literature values for SD1 at 512 px"
    assert (finding.percentile, finding.p_value, finding.rate) == (None, None, None)


def test_the_literature_s_values_hold_for_what_they_were_measured_on(verdict, step):
    sd1 = {"family": "sd15", "latent": (64, 64)}
    assert verdict(0.05, **sd1).verdict == "memorized"
    for elsewhere in ({**sd1, "family": "sdxl"}, {**sd1, "latent": (96, 64)}, {**sd1, "latent": (32, 128)}):
        other = verdict(0.05, **elsewhere)
        assert other.verdict == "unknown"
        assert other.threshold_source == "uncalibrated: no profile for this model; run memguard calibrate"
    for negative in ("blurry", None):
        other = verdict(0.05, **sd1, negative=negative)
        assert other.verdict == "unknown"
        assert other.threshold_source.endswith("values are for the empty negative prompt and one scored step")
    assert verdict(0.05, **sd1, negative="blurry", reference="empty").verdict == "memorized"
    evidence = [step(0.05, latent=(64, 64)), step(0.05, latent=(64, 64), index=1)]
    report = Report(run="r1", model=MODEL, family="sd15", negative_prompt="")
    assert judge(detect(evidence), report, evidence, None, Sensitivity()).verdict == "unknown"


def test_a_saved_profile_is_found_by_fingerprint(verdict, profile, home):
    path = store.save(profile())
    assert path.parent == home / "profiles"
    assert path.name == f"{MODEL}-8x8-negative-s1-14.6.json"
    assert verdict(0.05).verdict == "memorized"
    assert verdict(0.05, model="ffff").verdict == "unknown"
    unnamed = verdict(0.05, model="")
    assert unnamed.verdict == "unknown"
    assert unnamed.threshold_source.startswith(
        "uncalibrated: the model's weights cannot be read, so no profile is known"
    )


def test_a_profile_for_other_settings_is_the_reason(verdict, profile):
    store.save(profile(reference="empty"))
    finding = verdict(0.05)
    assert finding.verdict == "unknown"
    assert finding.threshold_source == (
        "uncalibrated: the profile compares with the empty prompt, this run with the negative one"
    )


def test_the_difference_that_is_named_is_the_nearest_profile_s(verdict, profile):
    """One of the same reference comes first, however much else of it fits less."""
    store.save(profile(reference="empty"))
    store.save(profile(latent=(32, 32), sigma=3.0))
    store.save(profile(latent=(32, 32)))
    assert verdict(0.05).threshold_source == (
        "uncalibrated: the profile is for 32 x 32 latents, this run has 8 x 8; calibrate at this size"
    )
    assert verdict(0.05, negative="blurry", reference="empty").verdict == "memorized"


def test_two_negative_prompts_have_two_files_and_two_verdicts(verdict, profile):
    blurry = negative_of("blurry")
    paths = {store.save(profile()), store.save(profile(negative=blurry)), store.save(profile(negative="unknown0123"))}
    assert {path.name for path in paths} == {
        f"{MODEL}-8x8-negative-s1-14.6.json",
        f"{MODEL}-8x8-negative-{blurry}-s1-14.6.json",
        f"{MODEL}-8x8-negative-unknown0123-s1-14.6.json",
    }
    for negative in ("", "blurry"):
        found = store.find(replace(HAVE, negative=negative_of(negative)), "text_noise_norm")
        assert found.conditions.negative == negative_of(negative)
        assert verdict(0.05, negative=negative).caveat == ""
    assert verdict(0.05, negative="else").caveat.startswith("the profile's negative prompt is not known")


def test_a_negative_prompt_that_no_profile_is_for_withholds_the_verdict(verdict, profile):
    store.save(profile())
    finding = verdict(0.05, negative="blurry")
    assert (finding.verdict, finding.percentile) == ("unknown", None)
    assert finding.threshold_source.startswith(
        "uncalibrated: the profile is for the empty negative prompt, this run has"
    )
    unknown = verdict(0.05, negative=None)
    assert unknown.verdict == "memorized"
    assert unknown.caveat == "this run's negative prompt is not known, so the profile may be of another one"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"images": 4}, "8x8-negative-n4-s1-14.6"),
        ({"steps_scored": 3, "scheduler": "Euler a"}, "8x8-negative-s3-Eulera-20-g7.5-14.6"),
        ({"reference": "empty", "negative": "abcd0123"}, "8x8-empty-s1-14.6"),
        ({"model": ""}, "8x8-negative-s1-14.6"),
    ],
)
def test_what_tells_profiles_apart_is_in_their_names(changes, name, profile):
    assert store.save(profile(**changes)).stem == f"{changes.get('model', MODEL) or 'unknown'}-{name}"


def test_of_several_profiles_the_nearest_in_size_is_taken(profile):
    for latent in ((16, 16), (19, 19), (64, 64)):
        store.save(profile(latent=latent))

    def found(*latent):
        return store.find(replace(HAVE, latent=latent), "text_noise_norm")

    assert [found(*size).conditions.latent for size in ((15, 15), (16, 17), (18, 19), (70, 64))] == [
        (16, 16),
        (16, 16),
        (19, 19),
        (64, 64),
    ]
    assert found(8, 8) is None and found(128, 192) is None
    assert store.find(replace(HAVE, latent=(64, 64)), "attention_entropy") is None


def test_of_several_profiles_that_of_as_many_images_is_taken(profile):
    for images in (1, 4):
        store.save(profile(images=images))
    for images, nearest in ((1, 1), (4, 4), (5, 4), (2, 1)):
        assert store.find(replace(HAVE, images=images), "text_noise_norm").conditions.images == nearest


def test_a_profile_of_an_earlier_version_is_the_reason(verdict, profile):
    path = store.save(profile())
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 1'))
    reason = "uncalibrated: this model's profile was made by an older version of MemGuard; calibrate again"
    assert verdict(0.05).threshold_source == reason


def test_a_host_s_folder_comes_before_the_home(tmp_path, profile):
    store.save(replace(profile(), note="home"))
    store.save(replace(profile(), note="host"), tmp_path / "host")
    store.register(tmp_path / "host")
    store.register(tmp_path / "host")
    assert store.folders()[:2] == [tmp_path / "host", tmp_path / "home" / "profiles"]
    assert store.find(HAVE, "text_noise_norm").note == "host"


def test_a_broken_file_is_one_line_in_the_log_and_hides_no_other(verdict, profile, home, caplog):
    store.save(profile())
    (home / "profiles" / f"{MODEL}-0.json").write_text("{", encoding="utf-8")
    with caplog.at_level(logging.WARNING, "memguard"):
        assert [verdict(0.05).verdict for _ in range(3)] == ["memorized"] * 3
    assert len(caplog.records) == 1
    assert "not a memguard profile" in caplog.text


def test_a_link_to_nowhere_and_a_deep_file_are_passed_over(verdict, profile, home, caplog):
    store.save(profile())
    (home / "profiles" / f"{MODEL}-0.json").symlink_to(home / "gone.json")
    (home / "profiles" / f"{MODEL}-1.json").write_text("[" * 100_000, encoding="utf-8")
    (home / "profiles" / f"{MODEL}-2.json").mkdir()
    with caplog.at_level(logging.WARNING, "memguard"):
        assert [verdict(0.05).verdict for _ in range(3)] == ["memorized"] * 3
    named = [record.getMessage() for record in caplog.records]
    assert [f"{MODEL}-{i}.json" in line for i, line in enumerate(named)] == [True] * 3


def test_several_looks_at_one_run_say_how_often_any_of_them_errs(step, profile):
    made = profile()
    both = replace(made, distributions={**made.distributions, "attention_entropy": made.distributions[NORM]})
    report = Report(run="r1", model=MODEL, negative_prompt="")

    def looked(rms, prompts, detectors):
        evidence = [step(*rms, prompts=prompts)]
        found = [replace(detect(evidence), detector=name) for name in detectors]
        return together([judge(each, report, evidence, both, Sensitivity()) for each in found])

    assert looked((0.05,), (), [NORM])[0].caveat == ""
    two = looked((0.05,), (), [NORM, "attention_entropy"])
    assert two[0].caveat == "one of 2 looks at this run (detectors x prompts): up to 1.9 % of ordinary runs are flagged"
    (one,) = looked((0.05, 0.05, 0.01, 0.01), (0, 0, 1, 1), [NORM])
    assert one.caveat.startswith("one of 2 looks at this run (detectors x prompts): up to 1.9 %")
    assert looked((0.01,), (), [NORM, "attention_entropy"])[0].caveat == ""  # nothing is flagged


def test_a_mean_over_fewer_images_is_not_judged_by_a_profile_of_more(verdict, profile):
    made = profile(images=4)
    assert verdict(0.05, 0.05, 0.05, 0.05, profile=made).verdict == "memorized"
    fewer = verdict(0.05, 0.05, 0.05, profile=made)
    assert fewer.threshold_source == "uncalibrated: the profile is of means over 4 images, this run has 3"
    lost = verdict(0.05, 0.05, 0.05, float("nan"), profile=made)
    assert lost.threshold_source == fewer.threshold_source
    assert verdict(*[0.05] * 4, *[0.01] * 2, prompts=(0, 0, 0, 0, 1, 1), profile=made).verdict == "unknown"


def test_one_image_without_a_score_does_not_hide_the_others(verdict, profile):
    finding = verdict(0.05, float("nan"), 0.05, 0.05, profile=profile())
    assert (finding.verdict, finding.mean_rms) == ("memorized", pytest.approx(0.05))
    assert finding.caveat.startswith("image 2 of 4 has no score: ")


def test_a_run_that_nobody_watches_finds_what_is_ordinary(profile):
    made = profile()
    save(made)
    suspicious, typical = ordinary(made.conditions.model, 14.6, (8, 8))
    scores = made.distributions["text_noise_norm"].scores
    assert (suspicious, typical) == (scores[-3], pytest.approx(0.01, rel=1e-3))
    assert ordinary(made.conditions.model, 3.0, (8, 8)) == (None, None)
    assert ordinary(made.conditions.model, 14.6, (64, 64)) == (None, None)
    assert ordinary("00000000cafe0002", 14.6, (8, 8)) == (None, None)
