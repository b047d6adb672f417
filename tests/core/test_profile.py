"""The numbers of a profile: fit, percentiles, thresholds, files, and the conditions under which it holds."""

import json
import math
import statistics

import numpy as np
import pytest

from memguard.calibration import Distribution, Profile, ProfileError, Sensitivity, fit, ordinary_prompts

LOGNORMAL = np.random.default_rng(0).lognormal(math.log(0.01), 0.25, 20000).tolist()
SCORES = ("distributions", "text_noise_norm")
HAVE = {"model": "00000000cafe0001", "sigma": 14.6, "steps_scored": 1, "reference": "negative"}


def test_fit_finds_the_parameters_of_a_lognormal_sample():
    distribution = fit(LOGNORMAL)
    assert distribution.count == 20000
    assert distribution.log_median == pytest.approx(math.log(0.01), abs=0.01)
    assert distribution.log_spread == pytest.approx(0.25, abs=0.01)


def test_a_long_upper_tail_widens_the_spread_and_a_long_lower_one_does_not():
    logs = np.log(LOGNORMAL[:2001])
    median = np.median(logs)
    above, below = logs[logs > median] - median, logs[logs < median] - median
    stretched = fit(np.exp(np.concatenate([[median], median + 2 * above, median + below])).tolist())
    assert stretched.log_spread == pytest.approx(2 * np.sqrt(np.mean(above**2)), rel=1e-9)
    lower = fit(np.exp(np.concatenate([[median], median + above, median + 2 * below])).tolist())
    assert lower.log_spread == pytest.approx(np.sqrt(np.mean(above**2)), rel=1e-9)


def test_quantiles_are_those_of_numpy():
    distribution = fit(LOGNORMAL[:77])
    for q, value in distribution.quantiles.items():
        assert value == pytest.approx(np.quantile(LOGNORMAL[:77], float(q)), rel=1e-9)
    assert list(distribution.quantiles) == ["0.01", "0.05", "0.25", "0.5", "0.75", "0.9", "0.95", "0.99"]


@pytest.mark.parametrize("percentile", [5, 50, 90, 99, 99.9])
def test_the_percentile_of_a_score_is_the_share_of_the_sample_below_it(percentile):
    distribution = fit(LOGNORMAL)
    score = float(np.percentile(LOGNORMAL, percentile))
    assert distribution.percentile(score) == pytest.approx(percentile, abs=0.6)


def test_zscore_threshold_and_percentile_agree():
    distribution = Distribution(80, math.log(0.01), 0.2, {})
    assert distribution.zscore(0.01) == pytest.approx(0, abs=1e-12)
    assert distribution.percentile(0.01) == pytest.approx(50)
    assert distribution.threshold(2) == pytest.approx(0.01 * math.exp(0.4))
    assert distribution.zscore(distribution.threshold(1.7)) == pytest.approx(1.7)
    assert distribution.percentile(0.0) == 0.0  # a score of zero has no logarithm


def test_sensitivity_is_a_percentile_and_memorized_lies_one_deviation_further():
    sensitivity = Sensitivity(99)
    assert sensitivity.suspicious == pytest.approx(2.3263, abs=1e-4)
    assert sensitivity.memorized == pytest.approx(3.3263, abs=1e-4)
    assert Distribution(80, 0, 1, {}).percentile(math.exp(sensitivity.suspicious)) == pytest.approx(99)
    for bad in (49.9, 100, -1):
        with pytest.raises(ValueError, match=f"sensitivity is {bad}; give a percentile between 50 and 99.99"):
            Sensitivity(bad)


def test_fewer_than_fifty_usable_scores_make_no_profile():
    with pytest.raises(ProfileError, match="49 prompts with a score; a profile needs at least 50"):
        fit([0.01] * 49 + [math.nan, 0.0, -1.0, math.inf])
    assert fit([0.01] * 50).log_spread > 0  # equal scores must not divide by zero later


def test_the_package_ships_enough_varied_prompts():
    prompts = ordinary_prompts()
    assert len(prompts) >= 50
    assert len(set(prompts)) == len(prompts)
    assert statistics.fmean(len(p.split()) for p in prompts) > 5


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
        (lambda text: "", "not a memguard profile (Expecting value"),
        (lambda text: text[:50], "not a memguard profile ("),
        (lambda text: "[1, 2]", "not a memguard profile ("),
        (lambda text: "{}", "not a memguard profile ('schema' is missing)"),
        (lambda text: edited(text, "schema", to=9), "profile schema 9, this memguard reads 1"),
        (lambda text: edited(text, "conditions", "sigma", to=0), "not a memguard profile (sigma, steps_scored and lat"),
        (lambda text: edited(text, "conditions", "sigma", to="14"), "not a memguard profile ('>' not supported"),
        (lambda text: edited(text, *SCORES, "log_spread", to=0), "not a memguard profile (the distribution of text_"),
        (lambda text: edited(text, *SCORES, to={}), "not a memguard profile ("),
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


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({}, None),
        ({"sigma": 14.6 * 1.24}, None),
        ({"sigma": 14.6 / 1.26}, "the profile is for sigma 14.6, this run starts at 11.6"),
        ({"model": "ffff"}, "the profile is for model 00000000cafe0001, this is ffff; run memguard calibrate"),
        ({"model": ""}, None),  # a host that cannot name the model is believed
        ({"reference": "empty"}, "the profile compares with the negative prompt, this run with the empty one"),
        ({"steps_scored": 3}, "the profile scores 1 step(s), this run 3"),
    ],
)
def test_mismatch_names_what_differs(change, why, profile):
    assert profile().mismatch({**HAVE, **change}) == why


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
    "text", ["[" * 20_000, '{"schema": ' + 5000 * "9" + "}", '{"schema": 1, "conditions": []}', "\0"]
)
def test_text_that_is_no_profile_is_refused(tmp_path, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(ProfileError, match="not a memguard profile") as error:
        Profile.read(path)
    assert "\n" not in str(error.value)
