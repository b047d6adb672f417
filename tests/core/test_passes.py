"""Runs of one job: whose verdict a pass below full noise takes over, and what of a mitigation is repeated."""

from dataclasses import replace

import pytest
import torch

from memguard.attributions.moment import Encoded
from memguard.guard import Guard, MemorizationStop
from memguard.loop import Kept
from memguard.mitigations import get
from memguard.mitigations.base import Start, Treatment, View
from memguard.passes import NOTHING, UNTREATED, Pass, Passes, left_alone, repeat, takes_over
from memguard.records import Finding, Report
from memguard.wording import message

MODEL = "00000000cafe0001"


@pytest.fixture
def low(step):
    """The evidence of a first step far below full noise."""
    return lambda *values: replace(step(*values), sigma=0.1)


@pytest.fixture
def begun(profile):
    """A function that begins a run of the known model."""
    return lambda policy="observe", **more: Guard(policy=policy, profile=profile(), **more).begin(
        model=MODEL, family="sd15", host="test"
    )


def judged(run="first", verdict="memorized", model=MODEL):
    finding = Finding("text_noise_norm", (2.0,), (0.1,), verdict=verdict, percentile=99.0)
    return Report(run=run, model=model, findings=(finding,))


# --- which runs belong together ------------------------------------------------------------------------------------


def test_a_pass_belongs_to_the_same_prompt_of_its_job():
    passes = Passes()
    passes.add(Pass(judged("other job"), "a", "fox"))
    passes.add(Pass(judged("other prompt"), "b", "cat"))
    passes.add(Pass(judged("own", "ordinary"), "b", "fox"))
    assert passes.before("b", "fox").report.run == "own"
    assert passes.before("b", "dog") is None
    assert passes.before(None, "", ()) is None


def test_of_several_passes_of_a_job_the_gravest_decides():
    passes = Passes()
    for run, verdict in (("1", "ordinary"), ("2", "memorized"), ("3", "suspicious"), ("4", "unknown")):
        passes.add(Pass(judged(run, verdict), "a", "fox"))
    assert passes.before("a", "fox").report.run == "2"


def test_a_flagged_pass_goes_with_its_picture_and_an_ordinary_one_with_its_prompt_only():
    passes = Passes()
    passes.add(Pass(judged("flagged"), "a", "fox", frozenset({"latent 1"})))
    passes.add(Pass(judged("ordinary", "ordinary"), "a", "cat", frozenset({"latent 2"})))
    assert passes.before("a", "dog", {"latent 1"}).report.run == "flagged"
    assert passes.before("b", "dog", {"latent 2"}) is None


def test_a_first_pass_from_a_cache_is_found_by_prompt_and_model():
    passes = Passes()
    passes.add(Pass(judged("older"), "a", "fox"))
    passes.add(Pass(judged("newer", "ordinary"), "b", "fox"))
    assert passes.before("c", "fox", model=MODEL).report.run == "newer"
    assert passes.before("c", "fox", model="another") is None
    assert passes.before("c", "fox", model=MODEL, owner="someone else") is None


def test_a_verdict_that_was_taken_over_leads_back_to_its_run():
    passes = Passes()
    first = Pass(judged("first"), "a", "fox", frozenset({"latent 1"}))
    passes.add(first)
    passes.add(Pass(judged("second"), "a", "fox", frozenset({"latent 2"}), first=first))
    assert passes.before("a", "dog", {"latent 2"}).report.run == "first"
    passes.add(Pass(judged("third", "memorized"), "a", "cat", first=first))
    assert passes.before("b", "cat", model=MODEL) is None  # of that prompt nothing is known


def test_old_runs_go():
    passes = Passes(most=2)
    for run in "123":
        passes.add(Pass(judged(run), run, "fox"))
    assert passes.before("1", "fox") is None and passes.before("2", "fox").report.run == "2"
    passes.clear()
    assert passes.before("3", "fox") is None


# --- whose verdict it is -------------------------------------------------------------------------------------------


def test_a_pass_below_full_noise_takes_over_the_verdict_and_says_whose_it_is(begun, low):
    run = begun()
    run.earlier = Pass(judged())
    run.observe(low(0.1))
    report = run.finish()
    assert report.verdict == "memorized" and takes_over(run)
    assert [finding.carried for finding in report.findings] == ["", "first"]
    assert "not from pure noise" in report.findings[0].threshold_source
    assert "that is the verdict of an earlier pass, this one has none of its own" in message(report)
    assert Report.from_dict(report.to_dict()).findings == report.findings


def test_a_pass_with_a_verdict_of_its_own_keeps_it(begun, step):
    run = begun()
    run.earlier = Pass(judged())
    run.observe(step(0.001))
    assert run.finish().verdict == "ordinary" and not takes_over(run)
    assert "earlier pass" not in message(run.report)


def test_a_pass_without_a_score_takes_over_the_verdict(begun):
    run = begun("mitigate")
    run.earlier = Pass(judged())
    run.unavailable("cfg is 1")
    run.settle()
    assert run.to_mitigate
    left_alone(run, "for a reason")
    report = run.finish()
    assert report.verdict == "memorized" and report.attempts[0].changes == ("for a reason",)


def test_stop_ends_a_pass_whose_first_pass_looked_memorized(begun, low):
    run = begun("stop")
    run.earlier = Pass(judged())
    with pytest.raises(MemorizationStop, match="verdict of an earlier pass"):
        run.observe(low(0.1))


# --- what is repeated ----------------------------------------------------------------------------------------------


@pytest.fixture
def second(begun, low):
    """A function that repeats what a first pass kept; returns treatment, report and the treatments that were made."""

    def build(kept, rows=1, same_prompt=True, images=None):
        run = begun("mitigate")
        run.earlier = Pass(judged(), kept=kept)
        run.observe(low(*[0.1] * (images or rows)))
        assert run.to_mitigate
        made = []

        def redo(treatment):
            made.append(treatment)
            run.extra_rows += 2
            return low(*[0.01] * (images or rows))

        prompt = Encoded(torch.zeros((rows, 3, 2)))
        start = Start(prompt, prompt, None, (4, 8, 8), lambda view: torch.zeros(1), widths={"down_blocks.0.attn2": 4})
        assert isinstance(View(prompt), View)
        treatment = repeat(run, start, redo, same_prompt)
        return treatment, run.finish(), made, run

    return build


def test_edits_and_guidance_are_made_again(second):
    kept = Kept((get("spike_attenuation"), get("guidance_delay", until=900.0)), Treatment())
    treatment, report, made, run = second(kept)
    assert len(treatment.edits) == len(treatment.guidance) == 1
    (attempt,) = report.attempts
    assert attempt.mitigation == "Spike attenuation + Guidance delay, as in the first pass"
    assert attempt.kept and attempt.scores and attempt.verdict == "unknown" and attempt.extra_rows == 2
    assert len(made) == 1 and run.kept.mitigations == kept.mitigations
    assert "mitigated by Spike attenuation + Guidance delay, as in the first pass" in message(report)


def test_other_starting_noise_is_not_repeated_and_the_report_says_so(second):
    treatment, report, made, run = second(Kept((get("noise_adjustment"),), Treatment(noise=torch.zeros(1, 4, 8, 8))))
    assert not treatment.changes and made == [] and run.kept is None
    (attempt,) = report.attempts
    assert not attempt.kept and attempt.changes[-1] == NOTHING
    assert "Noise adjustment was left out: the run starts from a picture, not from pure noise" in attempt.changes
    assert "could not be mitigated, the picture is the unmitigated one" in message(report)


def test_a_pass_that_was_not_mitigated_leaves_nothing_to_repeat(second):
    treatment, report, made, _ = second(None)
    assert not treatment.changes and made == [] and report.attempts[0].changes == (UNTREATED,)


@pytest.mark.parametrize("rows", [1, 2])
def test_an_optimised_prompt_is_taken_as_it_is(second, rows):
    found = Encoded(torch.ones((2, 3, 2)))
    treatment, report, *_ = second(Kept((get("prompt_optimization"),), Treatment(prompt=found)), rows)
    assert torch.equal(treatment.prompt.text, torch.ones((rows, 3, 2)))
    assert [line for line, parts in treatment.deeds if parts == {"prompt"}] == ["the first pass's optimised prompt"]


@pytest.mark.parametrize("other", ["prompt", "length", "rows"])
def test_an_optimised_prompt_that_does_not_fit_is_left_out(second, other):
    found = torch.ones((2, 4 if other == "length" else 3, 2))
    if other == "rows":
        found[1] = 2
    kept = Kept((get("prompt_optimization"),), Treatment(prompt=Encoded(found)))
    treatment, report, *_ = second(kept, same_prompt=other != "prompt")
    assert not treatment.changes and "does not fit this pass" in report.attempts[0].changes[0]


def test_of_a_batch_the_same_images_are_treated(second):
    kept = Kept((get("spike_attenuation"),), Treatment(), images=(1,), batch=2)
    treatment, *_ = second(kept, rows=2)
    assert treatment.images.tolist() == [1]
    whole, *_ = second(kept, rows=1)
    assert whole.images is None and whole.edits
