import math

import pytest
import torch

import memguard
from memguard.guard import Guard, MemorizationStop

from_model = {"model": "00000000cafe0001", "family": "sd15", "host": "test"}


def test_a_run_wants_its_first_steps_once(step):
    run = Guard(steps=2).begin()
    assert run.wants(0)
    run.observe(step(0.01, index=0))
    assert not run.wants(0)
    assert run.wants(1)
    run.observe(step(0.01, index=1))
    assert not run.wants(1)
    assert not run.wants(2)


def test_a_step_that_was_missed_is_not_made_up_for_by_scoring_another_twice(step):
    run = Guard(steps=2).begin()
    run.observe(step(0.01, index=1))
    assert not run.wants(1)


def test_the_sink_hears_the_verdict_at_once_and_the_end_once(step, profile):
    heard = []
    guard = Guard(profile=profile(), sink=heard.append)
    run = guard.begin(**from_model)
    assert heard == []
    run.observe(step(0.01))
    assert [r.verdict for r in heard] == ["ordinary"]
    assert heard[0].seconds == 0
    run.extra_rows = 3
    last = run.finish(sampler="euler")
    assert len(heard) == 2
    assert heard[1] is last is guard.report
    assert last.run == heard[0].run
    assert last.seconds > 0
    assert (last.extra_rows, last.sampler, last.host) == (3, "euler", "test")
    assert run.finish(sampler="other") is last
    assert len(heard) == 2


def test_observing_changes_nothing_that_it_was_given(step):
    evidence = step(0.5, 0.01)
    cond, uncond = evidence.noise_cond.clone(), evidence.noise_uncond.clone()
    run = Guard().begin()
    run.observe(evidence)
    run.finish()
    assert torch.equal(evidence.noise_cond, cond)
    assert torch.equal(evidence.noise_uncond, uncond)


@pytest.mark.parametrize("policy", ["observe", "warn"])
def test_only_stop_ends_a_memorized_run(policy, step, profile):
    run = Guard(policy=policy, profile=profile()).begin(**from_model)
    run.observe(step(0.05))
    report = run.finish()
    assert (report.verdict, report.flagged, report.policy) == ("memorized", True, policy)


def test_stop_raises_the_message_that_the_report_carries(step, profile):
    run = Guard(policy="stop", profile=profile()).begin(**from_model)
    with pytest.raises(MemorizationStop) as stopped:
        run.observe(step(0.05))
    assert str(stopped.value) == (
        "MemGuard: looks memorized (score 0.8, higher than all 320 ordinary prompts; this run's negative prompt is not "
        "known, so the profile may be of another one). "
        "Stopped before more steps were spent: change the prompt or the policy."
    )
    assert stopped.value.report.verdict == "memorized"
    assert run.finish().verdict == "memorized"


def test_stop_lets_ordinary_and_unknown_runs_go_on(step, profile):
    ordinary = Guard(policy="stop", profile=profile()).begin(**from_model)
    ordinary.observe(step(0.01))
    assert ordinary.finish().verdict == "ordinary"
    unknown = Guard(policy="stop").begin()
    unknown.observe(step(9.0))
    assert unknown.finish().verdict == "unknown"


def test_stop_acts_in_a_run_of_fewer_steps_than_were_to_be_scored(step, profile):
    run = Guard(policy="stop", steps=4, profile=profile(steps_scored=2)).begin(**from_model)
    run.observe(step(0.05, index=0, num_steps=2))
    with pytest.raises(MemorizationStop):
        run.observe(step(0.05, index=1, num_steps=2))


def test_a_run_is_judged_once_even_if_a_sampler_makes_more_calls_than_steps(step):
    run = Guard(steps=4).begin()
    run.observe(step(0.01, index=0, num_steps=2))
    assert run.wants(1)
    run.observe(step(0.01, index=1, num_steps=2))
    assert not run.wants(2)


def test_a_run_of_unknown_length_waits_for_all_steps(step):
    run = Guard(steps=2).begin()
    run.observe(step(0.01, index=0, num_steps=0))
    assert run.report.findings == ()
    run.observe(step(0.01, index=1, num_steps=0))
    assert len(run.report.findings[0].per_step) == 2


def test_an_interrupted_run_is_scored_by_the_steps_that_there_are(step):
    run = Guard(steps=3).begin()
    run.observe(step(0.01))
    assert run.report.findings == ()
    finding = run.finish().findings[0]
    assert len(finding.per_step) == 1
    assert finding.rms == pytest.approx((0.01,), rel=1e-5)


def test_the_first_reason_stays_and_ends_the_collecting():
    run = Guard(reference="empty").begin()
    run.unavailable("cfg is 1")
    run.unavailable("something else")
    assert not run.wants(0)
    report = run.finish()
    finding = report.findings[0]
    assert (finding.status, finding.score, finding.reference) == ("cfg is 1", None, "empty")
    assert report.to_dict()["message"] == "MemGuard: no score, because cfg is 1"


def test_a_reason_does_not_replace_a_score(step):
    run = Guard().begin()
    run.observe(step(0.01))
    run.unavailable("cfg is 1")
    assert run.finish().findings[0].status == "ok"


def test_a_run_without_a_single_call_says_so():
    status = Guard().begin().finish().findings[0].status
    assert status == "the run ended before its first step was complete"


def test_the_report_of_the_previous_run_does_not_stand_for_the_next(step):
    guard = Guard()
    first = guard.begin()
    first.observe(step(0.01))
    first.finish()
    second = guard.begin()
    second.unavailable("cfg is 1")
    second.finish()
    assert guard.report.run == second.report.run != first.report.run
    assert guard.report.findings[0].score is None


def test_the_map_is_that_of_the_last_scored_step(step):
    run = Guard(steps=2).begin()
    run.observe(step(0.1, index=0))
    run.observe(step(0.2, index=1))
    gap = run.finish().noise_gap_map
    assert gap.shape == (1, 8, 8)
    assert torch.allclose(gap, torch.full((1, 8, 8), 0.04), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"policy": "panic"}, "policy is 'panic'; use one of observe, warn, stop, mitigate"),
        ({"policy": "mitigate", "steps": 2}, "policy mitigate decides at the first step; use steps 1"),
        ({"policy": "warn", "mitigation": "auto"}, "a mitigation was given and policy is 'warn'; use policy mitigate"),
        ({"reference": "none"}, "reference is 'none'; use one of negative, empty"),
        ({"steps": 0}, "steps is 0; give a whole number of at least 1"),
        ({"detectors": ("nose",)}, "no detector is called 'nose'; there are: attention_entropy, "),
        ({"detectors": ()}, "detectors is empty; name at least one"),
        ({"sensitivity": 30}, "sensitivity is 30; give a percentile between 50 and 99.99"),
        ({"sensitivity": math.nan}, "sensitivity is nan"),
    ],
)
def test_bad_settings_get_one_clear_line(arguments, text):
    with pytest.raises(ValueError) as refused:
        Guard(**arguments)
    assert str(refused.value).startswith(text)


def test_one_detector_may_be_given_by_its_bare_name():
    assert Guard(detectors="text_noise_norm").detectors == ("text_noise_norm",)


def test_the_public_names_are_the_cores():
    assert memguard.Guard is Guard
    assert memguard.MemorizationStop is MemorizationStop
    with pytest.raises(AttributeError, match="has no attribute 'gaurd'"):
        memguard.gaurd  # noqa: B018


def test_of_several_prompts_in_a_batch_the_gravest_decides(step, profile):
    guard = Guard(profile=profile())
    run = guard.begin(model="00000000cafe0001", family="sd15", host="test")
    run.observe(step(0.002, 0.002, 0.002, 0.03, prompts=(0, 0, 0, 1)))
    finding = run.finish().findings[0]
    assert finding.verdict == "memorized"
    assert finding.mean_rms == pytest.approx(0.03, rel=1e-4)
    assert finding.score == pytest.approx(0.03 * 16, rel=1e-4)
    assert finding.scores == pytest.approx((0.032, 0.032, 0.032, 0.48), rel=1e-4)
