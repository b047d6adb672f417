"""The numbers of a profile: ranks, the fit beside them, files, and the conditions under which it holds."""

import json
import math

import numpy as np
import pytest

from memguard.calibration import Distribution, Have, Profile, ProfileError, Sensitivity, fit, negative_of
from memguard.calibration.profile import OldProfile
from tests.spread import spread

LOGNORMAL = np.random.default_rng(0).lognormal(math.log(0.01), 0.25, 20000).tolist()
SCORES = ("distributions", "text_noise_norm", "scores")
HAVE = {"model": "00000000cafe0001", "sigma": 14.6, "steps_scored": 1, "reference": "negative", "latent": (8, 8)}
HAVE |= {"negative": "empty", "images": 1}


def test_a_profile_holds_the_scores_themselves():
    distribution = fit([0.03, math.nan, *spread(0.01, count=60), 0.02])
    assert distribution.count == 62 and distribution.scores[-2:] == (0.02, 0.03)
    assert list(distribution.scores) == sorted(distribution.scores)
    assert distribution.median == pytest.approx(float(np.median(distribution.scores)))


def test_the_fit_finds_the_parameters_of_a_lognormal_sample():
    distribution = fit(LOGNORMAL)
    assert distribution.log_median == pytest.approx(math.log(0.01), abs=0.01)
    assert distribution.log_spread == pytest.approx(0.25, abs=0.01)
    assert distribution.zscore(math.exp(distribution.log_median + 1.7 * distribution.log_spread)) == pytest.approx(1.7)
    assert distribution.zscore(0.0) < -50  # a score of zero has no logarithm


def test_a_long_upper_tail_widens_the_spread_and_a_long_lower_one_does_not():
    logs = np.log(LOGNORMAL[:2001])
    median = np.median(logs)
    above, below = logs[logs > median] - median, logs[logs < median] - median
    stretched = fit(np.exp(np.concatenate([[median], median + 2 * above, median + below])).tolist())
    assert stretched.log_spread == pytest.approx(2 * np.sqrt(np.mean(above**2)), rel=1e-9)
    lower = fit(np.exp(np.concatenate([[median], median + above, median + 2 * below])).tolist())
    assert lower.log_spread == pytest.approx(np.sqrt(np.mean(above**2)), rel=1e-9)


def test_the_p_value_is_a_rank_and_never_beyond_what_the_number_of_prompts_shows():
    distribution = Distribution(tuple(i / 100 for i in range(1, 101)))
    for rms, below in ((0.005, 0), (0.01, 0), (0.011, 1), (0.5, 49), (0.995, 99), (1.0, 99), (9.0, 100)):
        at_least = sum(score >= rms for score in distribution.scores)
        assert distribution.below(rms) == below == 100 - at_least
        assert distribution.p_value(rms) == pytest.approx((1 + at_least) / 101)
        assert distribution.percentile(rms) == pytest.approx(100 * (1 - distribution.p_value(rms)))
    assert distribution.percentile(1e9) == pytest.approx(100 * (1 - 1 / 101))
    assert (distribution.limit(0), distribution.limit(2)) == (1.0, 0.98)


def test_sensitivity_is_a_rate_and_memorized_is_said_three_times_as_rarely():
    assert Sensitivity(99).suspicious == pytest.approx(0.01)
    assert Sensitivity(99).memorized == pytest.approx(0.01 / 3)
    for bad in (49.9, 100, -1):
        with pytest.raises(ValueError, match=f"sensitivity is {bad}; give a percentile between 50 and 99.99"):
            Sensitivity(bad)


def test_scores_that_make_no_profile():
    with pytest.raises(ProfileError, match="49 prompts with a score; a profile needs at least 50"):
        fit(spread(0.01, count=49) + [math.nan, 0.0, -1.0, math.inf])
    for equal in ([0.01] * 50, [0.005] * 20 + [0.01] * 30):
        with pytest.raises(ProfileError, match="score the same, and none scores higher: nothing can stand out"):
            fit(equal)
    assert fit([0.01] * 49 + [0.011]).log_spread > 0


def test_a_profile_survives_its_file(tmp_path, profile):
    path = tmp_path / "p.json"
    path.write_text(profile().to_json(), encoding="utf-8")
    back = Profile.read(path)
    assert back == profile()
    assert back.source == str(path)
    assert back.conditions.latent == (8, 8)


def edited(text: str, *keys: str, to) -> str:
    values = json.loads(text)
    place = values
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    return json.dumps(values)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (
            lambda text: "",
            "not a memguard profile (no JSON, or a text where a number belongs); run memguard calibrate ag",
        ),
        (lambda text: text[:50], "not a memguard profile (no JSON"),
        (lambda text: "[1, 2]", "not a memguard profile (a value is of another kind than profiles hold)"),
        (lambda text: "{}", "not a memguard profile ('schema' is missing)"),
        (lambda text: "[" * 100_000 + "]" * 100_000, "not a memguard profile (nested too deeply)"),
        (lambda text: edited(text, "schema", to=9), "profile schema 9, this memguard reads 2"),
        (lambda text: edited(text, "schema", to=1), "made by an older version of MemGuard; calibrate again"),
        (lambda text: edited(text, "conditions", "sigma", to=0), "not a memguard profile (sigma, steps_scored, images"),
        (
            lambda text: edited(text, "conditions", "sigma", to="14"),
            "not a memguard profile (a value is of another kind",
        ),
        (lambda text: edited(text, "conditions", "model", to={}), "not a memguard profile (a value is of another kind"),
        (
            lambda text: edited(text, "conditions", "latent", to=[8]),
            "not a memguard profile (sigma, steps_scored, imag",
        ),
        (
            lambda text: edited(text, *SCORES, to=[0.1] * 80),
            "not a memguard profile (half of the prompts or more score",
        ),
        (
            lambda text: edited(text, *SCORES, to=[0.1, 0.2]),
            "not a memguard profile (2 prompts with a score; a profile",
        ),
        (
            lambda text: edited(text, *SCORES, to=[0.2, 0.1] * 40),
            "not a memguard profile (the scores of text_noise_nor",
        ),
        (
            lambda text: edited(text, *SCORES, to=[0.0] * 80),
            "not a memguard profile (a score of text_noise_norm is not",
        ),
        (lambda text: edited(text, *SCORES, to=[10**400] * 80), "not a memguard profile (a value is of another kind"),
        (lambda text: edited(text, *SCORES, to=5), "not a memguard profile (a value is of another kind"),
        (lambda text: edited(text, *SCORES[:2], to={}), "not a memguard profile ('scores' is missing)"),
    ],
)
def test_a_broken_file_gets_one_line_with_its_name(spoil, what, tmp_path, profile):
    path = tmp_path / "broken.json"
    path.write_text(spoil(profile().to_json()), encoding="utf-8")
    with pytest.raises(ProfileError) as refused:
        Profile.read(path)
    assert str(refused.value).startswith(f"{path}: {what}")
    assert "\n" not in str(refused.value)


def test_a_missing_file_and_a_wrong_encoding_get_one_line(tmp_path):
    with pytest.raises(ProfileError, match=r"nowhere\.json: cannot be read \(No such file or directory\); run"):
        Profile.read(tmp_path / "nowhere.json")
    path = tmp_path / "utf16.json"
    path.write_bytes("{}".encode("utf-16"))
    with pytest.raises(ProfileError, match=r"utf16\.json: not a memguard profile"):
        Profile.read(path)


def test_a_profile_of_an_earlier_version_is_told_from_a_broken_one(tmp_path, profile):
    path = tmp_path / "old.json"
    path.write_text(edited(profile().to_json(), "schema", to=1), encoding="utf-8")
    with pytest.raises(OldProfile):
        Profile.read(path)


SEVERAL = {"steps_scored": 3}


@pytest.mark.parametrize(
    ("made", "change", "why"),
    [
        ({}, {}, None),
        ({}, {"sigma": 14.6 * 1.14}, None),
        ({}, {"sigma": 14.6 / 1.16}, "the profile is for sigma 14.6, this run starts at 12.6"),
        ({}, {"model": "ffff"}, "the profile is for model 00000000cafe0001, this is ffff; run memguard calibrate"),
        ({}, {"model": ""}, None),  # a host that cannot name the model is believed
        ({}, {"reference": "empty"}, "the profile compares with the negative prompt, this run with the empty one"),
        ({}, SEVERAL, "the profile scores 1 step(s), this run 3"),
        (
            {},
            {"negative": "abcd0123"},
            "the profile is for the empty negative prompt, this run has another one; "
            "calibrate with it, or compare with the empty prompt (reference empty)",
        ),
        (
            {"negative": "abcd0123"},
            {},
            "the profile is for another negative prompt than this run's, which is empty; calibrate",
        ),
        (
            {"negative": "abcd0123"},
            {"negative": "abcd0124"},
            "the profile is for another negative prompt than this "
            "run's; calibrate with it, or compare with the empty prompt (reference empty)",
        ),
        ({}, {"negative": None}, None),
        ({"negative": "unknown0123"}, {"negative": "abcd0123"}, None),
        ({"negative": "abcd0123", "reference": "empty"}, {"reference": "empty"}, None),  # it is compared with nothing
        (
            {"negative": "abcd0123", "reference": "empty", **SEVERAL},
            {"reference": "empty", **SEVERAL},
            "the profile is for another negative prompt than this run's, which is empty; calibrate",
        ),
        ({"latent": (16, 16)}, {"latent": (16, 20)}, None),
        (
            {"latent": (16, 16)},
            {"latent": (16, 21)},
            "the profile is for 16 x 16 latents, this run has 21 x 16; calibrate at this size",
        ),
        (
            {"latent": (16, 16)},
            {"latent": (18, 18)},
            "the profile is for 16 x 16 latents, this run has 18 x 18; calibrate at this size",
        ),
        ({"latent": (16, 16)}, {"latent": (17, 18)}, None),
        (
            {"latent": (16, 20)},
            {"latent": (20, 16)},
            "the profile is for 20 x 16 latents, this run has 16 x 20; calibrate at this size",
        ),
        ({"images": 4}, {}, "the profile is of means over 4 images, this run has 1"),
        ({}, {"images": 4}, None),  # a mean over more images has a shorter tail
        (SEVERAL, {**SEVERAL, "scheduler": "heun"}, "the profile is for sampler euler, this run has heun"),
        (SEVERAL, {**SEVERAL, "num_steps": 30}, "the profile is for number of steps 20, this run has 30"),
        (SEVERAL, {**SEVERAL, "guidance_scale": 1.0}, "the profile is for guidance scale 7.5, this run has 1.0"),
        (SEVERAL, {**SEVERAL, "scheduler": "euler", "num_steps": 20, "guidance_scale": 7.5}, None),
        ({}, {"scheduler": "heun", "num_steps": 30, "guidance_scale": 1.0}, None),  # the first step is before all that
    ],
)
def test_mismatch_names_what_differs(made, change, why, profile):
    assert profile(**made).mismatch(Have(**{**HAVE, **change})) == why


def test_what_is_not_known_is_a_doubt(profile):
    doubts = profile().conditions.doubts
    assert doubts(Have(**HAVE)) == []
    assert doubts(Have(**{**HAVE, "model": ""})) == ["whether the profile is this model's is not known"]
    assert doubts(Have(**{**HAVE, "negative": None})) == [
        "this run's negative prompt is not known, so the profile may be of another one"
    ]
    theirs = profile(negative="unknown0123").conditions.doubts(Have(**HAVE))
    assert theirs == ["the profile's negative prompt is not known, so the profile may be of another one"]
    assert profile(reference="empty").conditions.doubts(Have(**{**HAVE, "reference": "empty", "negative": None})) == []


def test_what_stands_for_a_negative_prompt():
    assert (negative_of(None), negative_of(""), negative_of(" \n")) == (None, "empty", "empty")
    assert negative_of("blurry") == negative_of(" blurry ") != negative_of("blurred")
    assert len(negative_of("blurry")) == 8
    assert negative_of("\ud800") is not None


@pytest.mark.parametrize(
    "change",
    [
        {"note": {"a": 1}},
        {"model": {"a": 1}},
        {"scheduler": 3},
        {"sigma": float("nan")},
        {"sigma": float("inf")},
        {"sigma": 10**400},
        {"latent": [10**400, 8]},
        {"latent": ["8", "8"]},
        {"latent": 8},
        {"images": 0},
        {"negative": None},
    ],
)
def test_a_profile_of_values_that_nobody_writes_is_refused(profile, tmp_path, change):
    values = json.loads(profile().to_json())
    (values if "note" in change else values["conditions"]).update(change)
    path = tmp_path / "p.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ProfileError, match="not a memguard profile") as error:
        Profile.read(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["[" * 20_000, '{"schema": ' + 5000 * "9" + "}", '{"schema": 2, "conditions": []}', "\0"]
)
def test_text_that_is_no_profile_is_refused(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match="not a memguard profile") as error:
        Profile.read(path)
    assert "\n" not in str(error.value)
