import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from memguard.records import SCHEMA, Attribution, Finding, Prescan, Report, TokenSpan
from memguard.troubles import UNFORESEEN
from memguard.wording import message, percent


def finding(**changes) -> Finding:
    values = {"scores": (6.0, 2.0), "rms": (0.06, 0.02), "per_step": ((6.0, 2.0),), "verdict": "memorized"}
    return Finding("text_noise_norm", **{**values, **changes})


def test_json_round_trip_keeps_every_value():
    spans = (TokenSpan("Kestrel", (3, 4)), TokenSpan("", (0,), "bos"))
    report = Report(
        run="r1",
        host="comfyui",
        prompt="Der Kestrel, 夜",
        seeds=(1, 2),
        cfg=7.5,
        policy="warn",
        findings=(finding(percentile=99.5, zscore=2.6), finding(verdict="ordinary")),
        attribution=Attribution("gradient", spans, (0.75, 0.25)),
        actions=("stopped",),
        noise_gap_map=torch.ones(2, 8, 8),
    )
    back = Report.from_dict(json.loads(report.to_json()))
    assert back == report  # noise_gap_map takes no part in comparison
    assert back.findings[0].per_step == ((6.0, 2.0),)
    assert back.attribution.spans[0].columns == (3, 4)
    assert back.noise_gap_map is None


def test_a_first_look_is_kept_where_there_was_one():
    look = Prescan(False, 64, 96, 1.5, 0.02, 0.25, 3, 7)
    report = Report(run="r1", findings=(finding(prescan=look), finding()))
    values = json.loads(report.to_json())
    assert values["findings"][0]["prescan"]["p_value"] == 0.25 and "prescan" not in values["findings"][1]
    values["findings"][0]["prescan"]["later"] = 1  # of a version to come
    assert Report.from_dict(values) == report
    assert [found.promoted for found in report.findings] == [False, True]
    assert finding(prescan=Prescan(True, 64, 64)).promoted


def test_json_names_its_schema_verdict_and_message():
    values = json.loads(Report(run="r1", findings=(finding(),)).to_json())
    assert values["schema"] == SCHEMA == 1
    assert values["verdict"] == "memorized"
    assert values["message"] == "MemGuard: looks memorized (score 4, uncalibrated)"
    assert "noise_gap_map" not in values


@pytest.mark.parametrize("schema", [None, 0, SCHEMA + 1, "1"])
def test_another_schema_is_refused_with_the_remedy(schema):
    with pytest.raises(ValueError, match=rf"report has schema {schema!r}, this memguard reads 1; update memguard"):
        Report.from_dict({"run": "r1", "schema": schema})


def test_not_a_number_becomes_null():
    report = Report(run="r1", cfg=math.inf, findings=(finding(scores=(math.nan, 1.0), zscore=-math.inf),))
    values = json.loads(report.to_json(), parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    assert values["cfg"] is None
    assert values["findings"][0]["scores"] == [None, 1.0]
    assert values["findings"][0]["zscore"] is None


def test_scores_are_means_over_images():
    assert finding().score == 4.0
    assert finding().mean_rms == pytest.approx(0.04, rel=1e-12)
    assert Finding("text_noise_norm", status="cfg is 1").score is None


@pytest.mark.parametrize(
    ("verdicts", "gravest", "flagged"),
    [
        ((), "unknown", False),
        (("unknown",), "unknown", False),
        (("unknown", "ordinary"), "ordinary", False),
        (("suspicious", "ordinary"), "suspicious", True),
        (("suspicious", "memorized", "unknown"), "memorized", True),
    ],
)
def test_a_report_has_its_gravest_verdict(verdicts, gravest, flagged):
    report = Report(run="r1", findings=tuple(finding(verdict=v) for v in verdicts))
    assert (report.verdict, report.flagged) == (gravest, flagged)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"below": 317, "count": 320}, "looks memorized (score 4, higher than 317 of 320 ordinary prompts)"),
        ({"below": 320, "count": 320}, "looks memorized (score 4, higher than all 320 ordinary prompts)"),
        (
            {"below": 0, "count": 320, "caveat": "but"},
            "looks memorized (score 4, higher than 0 of 320 ordinary prompts; but)",
        ),
        ({"percentile": 99.5}, "looks memorized (score 4, higher than 99.5 % of ordinary prompts)"),
        ({"percentile": 99.999}, "looks memorized (score 4, higher than at least 99.99 % of ordinary prompts)"),
        ({"verdict": "suspicious"}, "may be memorized (score 4, uncalibrated)"),
        ({"verdict": "ordinary", "scores": (1.23456,)}, "looks ordinary (score 1.23, uncalibrated)"),
        ({"verdict": "unknown", "threshold_source": "uncalibrated: no profile"}, "no verdict (score 4, uncalibrated: "),
        ({"scores": (), "verdict": "unknown", "status": "cfg is 1"}, "no score, because cfg is 1"),
    ],
)
def test_message_wording(changes, text):
    assert message(Report(run="r1", findings=(finding(**changes),))).startswith(f"MemGuard: {text}")


def test_message_of_an_error_and_of_nothing():
    assert message(Report(run="r1")) == "MemGuard: no score"
    assert message(Report(run="r1", error="boom")) == f"MemGuard: no score, because of {UNFORESEEN}"


def test_message_prefers_a_score_to_a_reason():
    without = finding(scores=(), verdict="unknown", status="attention was not read")
    scored = finding(verdict="unknown")
    assert "score 4" in message(Report(run="r1", findings=(without, scored)))


@pytest.mark.parametrize(
    ("findings", "told"),
    [
        ((), None),
        ((Finding("x", status="cfg is 1"), Finding("y", status="cfg is 1")), 0),
        ((Finding("x", status="cfg is 1"), finding(verdict="unknown")), 1),
        ((finding(verdict="ordinary"), finding(verdict="suspicious"), finding(verdict="ordinary")), 1),
        ((finding(threshold=0.02), finding(threshold=0.01), finding(threshold=0.03)), 1),  # the furthest from ordinary
    ],
)
def test_a_report_says_which_finding_its_sentence_is_of(findings, told):
    findings = tuple(replace(each, detector=f"detector {i}") for i, each in enumerate(findings))
    report = Report(run="r1", findings=findings)
    assert report.to_dict()["told"] == told
    if told is not None:
        shown = replace(report, findings=(findings[told],))
        assert message(report) == message(shown)


@given(st.floats(0, 100))
def test_a_percentile_is_never_rounded_up(value):
    text = percent(value)
    assert text != "100 %"
    assert float(text.removeprefix("at least ").removesuffix(" %")) <= value


def test_an_image_without_a_score_comes_back_as_one():
    report = Report(run="r1", findings=(finding(scores=(math.nan, 2.0), rms=(math.nan, 0.02)),))
    values = report.to_dict()
    assert values["findings"][0]["scores"] == [None, 2.0]
    back = Report.from_dict(json.loads(report.to_json())).findings[0]
    assert math.isnan(back.scores[0]) and back.score == 2.0 and back.mean_rms == 0.02
