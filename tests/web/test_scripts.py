"""The page's scripts: they parse, they load nothing from elsewhere, and their words are right."""

import math
import re
import subprocess

import pytest

from memguard.records import Finding, Report

from . import javascript
from .javascript import WEB, needs_node

SCRIPTS = sorted(WEB.rglob("*.js"))
# shown in the about page, and the name of a kind of element; neither is ever loaded
LINKS = {"https://github.com/memguard/memguard", "http://www.w3.org/2000/svg"}


def test_there_are_scripts():
    assert WEB / "js/memguard.js" in SCRIPTS


@needs_node
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_parses(script):
    with script.open("rb") as source:
        subprocess.run(["node", "--input-type=module", "--check"], stdin=source, check=True, timeout=60)


@pytest.mark.parametrize("file", [*SCRIPTS, *sorted(WEB.rglob("*.css"))], ids=lambda path: path.name)
def test_nothing_is_loaded_from_elsewhere(file):
    assert set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\"'\s)]*", file.read_text(encoding="utf-8"))) <= LINKS


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_words_of_others_cannot_become_markup(script):
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script.read_text())


def ask(expression: str, report: Report):
    """Return what a module answers about a report; the expression begins with its name."""
    return javascript.ask(expression.partition(".")[0], expression, report=report.to_dict())


def scored(verdict="memorized", percentile=99.2, policy="warn", source="profile of 60 ordinary prompts", **more):
    scores = (5.0, 6.0)
    finding = Finding("x", scores, scores, verdict=verdict, percentile=percentile, threshold_source=source, **more)
    return Report(run="r", policy=policy, findings=(finding,))


@needs_node
@pytest.mark.parametrize("policy", ["observe", "warn", "stop"])
@pytest.mark.parametrize("verdict", ["ordinary", "suspicious", "memorized", "unknown"])
def test_it_warns_exactly_when_asked_and_flagged(policy, verdict):
    report = scored(verdict, policy=policy)
    assert ask("toasts.warns(report)", report) == (policy != "observe" and report.flagged)


@needs_node
def test_the_toast_says_the_sentence_of_the_report():
    report = scored()
    toast = ask("toasts.toast([report])", report)
    assert toast["severity"] == "warn"
    assert toast["detail"] == report.to_dict()["message"]


@needs_node
def test_a_verdict_has_words_and_a_mark_and_a_percentile():
    badge = ask("words.describe(report)", scored())
    assert (badge["tone"], badge["text"]) == ("memorized", "Looks memorized")
    assert badge["mark"]
    assert badge["lines"] == ["Higher than 99.2 % of ordinary prompts", "Score 5.5, mean of 2"]


@needs_node
@needs_node
def test_a_verdict_says_its_rank_its_rate_and_what_limits_it():
    known = {"below": 320, "count": 320, "rate": 1 / 321, "rate_bound": 0.0093, "caveat": "this run's is not known"}
    assert ask("words.describe(report)", scored(**known))["lines"] == [
        "Higher than all 320 ordinary prompts",
        "Score 5.5, mean of 2",
        "Looks memorized by mistake: 0.31 % of ordinary prompts, at most 0.93 % (95 % confidence)",
        "This run's is not known",
    ]
    near = ask("words.describe(report)", scored("suspicious", **(known | {"below": 318})))["lines"]
    assert near[0] == "Higher than 318 of 320 ordinary prompts" and near[2].startswith("Flagged by mistake: 0.31 %")
    low = ask("words.describe(report)", scored("ordinary", **(known | {"below": 3, "rate": 0.0094})))["lines"]
    assert low[2] == "0.94 % of ordinary prompts are flagged by mistake, at most 0.93 % (95 % confidence)"


@needs_node
def test_an_image_without_a_score_is_not_counted_as_zero():
    scores = (math.nan, 5.0, 6.0)
    report = Report(run="r", findings=(Finding("x", scores, scores, verdict="memorized", percentile=99.2),))
    assert ask("words.describe(report)", report)["lines"][1] == "Score 5.5, mean of 2"


@pytest.mark.parametrize(("percentile", "words"), [(99.9999, "at least 99.99 %"), (99.989, "99.98 %"), (0.0, "0 %")])
def test_no_percentile_is_rounded_up_to_certainty(percentile, words):
    first = ask("words.describe(report)", scored(percentile=percentile))["lines"][0]
    assert first == f"Higher than {words} of ordinary prompts"


@needs_node
def test_without_a_profile_it_says_why_there_is_no_verdict():
    source = "uncalibrated: no profile for this model; run memguard calibrate"
    badge = ask("words.describe(report)", scored("unknown", None, source=source))
    assert badge["text"] == "No verdict"
    assert badge["lines"][0] == "U" + source[1:]


@needs_node
@pytest.mark.parametrize(
    ("report", "reason"),
    [
        (Report(run="r", findings=(Finding("text_noise_norm", status="cfg is 1"),)), "cfg is 1"),
        (Report(run="", error="KeyError: 3"), "nothing was measured"),
        (Report(run="r"), "nothing was measured"),
    ],
)
def test_without_a_score_it_says_why(report, reason):
    badge = ask("words.describe(report)", report)
    assert (badge["tone"], badge["text"], badge["lines"]) == ("none", "No score", [f"Reason: {reason}"])


@needs_node
def test_the_gravest_finding_is_shown():
    report = scored("ordinary", 10.0)
    grave = Finding("other", (9.0,), (9.0,), verdict="suspicious", percentile=99.5)
    both = Report(run="r", findings=(*report.findings, grave))
    assert ask("words.describe(report).text", both) == "May be memorized"
