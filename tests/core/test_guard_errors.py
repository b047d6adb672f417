"""Errors inside memguard: they never cost the picture, except under policy "stop", which fails closed."""

import logging
from types import SimpleNamespace

import pytest

from memguard.guard import Guard, MemorizationStop
from memguard.records import Finding
from memguard.troubles import UNFORESEEN


def broken(_evidence):
    raise ValueError("boom")


BROKEN = SimpleNamespace(NAME="broken", NEEDS=frozenset(), detect=broken)


def test_a_sink_that_fails_is_logged_and_costs_nothing(step, caplog):
    def sink(_report):
        raise ConnectionError("page closed")

    guard = Guard(sink=sink)
    run = guard.begin()
    with caplog.at_level(logging.WARNING, "memguard"):
        run.observe(step(0.01))
        report = run.finish()
    assert guard.report is report
    assert "the report could not be shown: page closed" in caplog.text


def test_a_detector_that_fails_costs_neither_the_picture_nor_the_other_findings(step):
    guard = Guard()
    guard._asked = [BROKEN, *guard._asked]
    run = guard.begin()
    run.observe(step(0.01))
    report = run.finish()
    assert report.error == "ValueError: boom"
    assert report.findings[0].status == UNFORESEEN
    assert report.findings[1].rms == pytest.approx((0.01,), rel=1e-5)


def test_each_detector_is_asked_once(step):
    calls = []

    def detect(evidence):
        calls.append(len(evidence))
        return Finding("counting", scores=(1.0,), rms=(1.0,))

    guard = Guard(steps=2)
    guard._asked = [SimpleNamespace(NAME="counting", NEEDS=frozenset(), detect=detect)]
    run = guard.begin()
    run.observe(step(0.01, index=0))
    run.observe(step(0.01, index=1))
    run.finish()
    assert calls == [2]


def test_stop_fails_closed_and_still_reports(step):
    guard = Guard(policy="stop")
    guard._asked = [BROKEN]
    run = guard.begin()
    with pytest.raises(MemorizationStop, match=f"^MemGuard: no score, because {UNFORESEEN}. Stopped") as ended:
        run.observe(step(0.01))
    assert isinstance(ended.value.__cause__, ValueError)
    assert run.finish().error == "ValueError: boom"
    assert guard.report.findings[0].status == UNFORESEEN


@pytest.mark.parametrize("policy", ["observe", "warn", "stop"])
def test_a_run_that_was_called_and_has_no_score_ends_under_stop_only(policy):
    run = Guard(policy=policy).begin()
    run.unavailable("cfg is 1")
    if policy == "stop":
        with pytest.raises(MemorizationStop, match="^MemGuard: no score, because cfg is 1. Stopped"):
            run.insist()
    else:
        run.insist()
    assert run.finish().findings[0].status == "cfg is 1"


def test_a_detector_without_a_score_ends_the_run_under_stop(step):
    guard = Guard(policy="stop")
    guard._asked = [SimpleNamespace(NAME="blind", NEEDS=frozenset(), detect=lambda _: Finding("blind", status="dark"))]
    with pytest.raises(MemorizationStop, match="no score, because dark"):
        guard.begin().observe(step(0.01))


def test_a_scored_run_is_not_ended_for_want_of_a_score(step):
    run = Guard(policy="stop").begin()
    run.observe(step(0.01))
    run.insist()
    assert run.finish().findings[0].score is not None


def test_an_error_after_the_score_ends_no_run(step):
    """There is a score, so "no score, because ..." would be false; before it, the same error ends the run."""
    run = Guard(policy="stop", steps=2).begin()
    run.observe(step(0.01))
    with pytest.raises(MemorizationStop), run.careful():
        raise KeyError("layer")
    run = Guard(policy="stop").begin()
    run.observe(step(0.01))
    with run.careful():
        raise KeyError("layer")
    report = run.finish()
    assert report.findings[0].score is not None and report.error == "KeyError: 'layer'"


def test_a_broken_detector_beside_one_that_works_ends_the_run_under_stop(step):
    guard = Guard(policy="stop")
    guard._asked = [*guard._asked, BROKEN]
    with pytest.raises(MemorizationStop, match=f"no score, because {UNFORESEEN}"):
        guard.begin().observe(step(0.01))


def test_an_error_that_shows_only_at_the_end_is_reported_not_raised(step):
    guard = Guard(policy="stop", steps=2)
    guard._asked = [BROKEN]
    run = guard.begin()
    run.observe(step(0.01))
    assert run.finish().error == "ValueError: boom"


def test_an_error_of_the_host_is_the_reason():
    run = Guard().begin()
    run.failed(RuntimeError("rows do not match"))
    report = run.finish()
    assert report.error == "RuntimeError: rows do not match"
    assert report.findings[0].status == UNFORESEEN
    with pytest.raises(MemorizationStop, match=UNFORESEEN):
        Guard(policy="stop").begin().failed(RuntimeError("rows do not match"))


class Pressed(Exception):
    """What a host raises when somebody presses its stop button."""


def test_a_hook_that_fails_costs_the_score_and_not_the_picture():
    run = Guard().begin()
    with run.careful(Pressed):
        raise RuntimeError("index 81 is out of bounds")
    assert run.finish().findings[0].status == UNFORESEEN


def test_a_hook_under_stop_and_a_pressed_button_end_the_run():
    with pytest.raises(MemorizationStop, match=UNFORESEEN), Guard(policy="stop").begin().careful():
        raise RuntimeError("broken")
    with pytest.raises(Pressed), Guard().begin().careful(Pressed):
        raise Pressed
