"""The closed loop: what is tried, in which order, what is kept, and what the report says of it."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from memguard.attributions.moment import Encoded
from memguard.calibration import fit
from memguard.guard import Guard
from memguard.loop import mitigate
from memguard.mitigations import get
from memguard.mitigations.base import Mitigation, Start, Step, Treatment, Unsuitable
from memguard.mitigations.edit import Edit
from memguard.records import NeuronSet, Report
from memguard.troubles import UNFORESEEN, NotFinite, Refused
from memguard.wording import message
from tests.spread import spread

TYPICAL = 0.01  # of the profile
LIMIT = TYPICAL * math.exp(0.2 * 2.3263)  # from which its verdict is "suspicious"
ONE = torch.ones(1, 4, 8, 8)
GUIDED = Step(0, 10, 1.0, 999.0, 7.5, lambda view: ONE, Encoded(torch.ones(1, 77, 6)), ONE, ONE)
MASK = NeuronSet({"down_blocks.0.attn2": (1,)})


@dataclass(frozen=True)
class Falling(Mitigation):
    """Leaves a share of the score."""

    NAME = "falling"
    TITLE = "Falling"
    SOURCE = "test"

    leaves: float = 1.0
    error: Exception | None = None
    guides: bool = False

    def _treat(self, start: Start, before: Treatment) -> Treatment:
        if self.error is not None:
            raise self.error
        if self.guides:
            return replace(before, guidance=(lambda gap, step: gap / 2,)).note("guided")
        edit = Edit()
        edit.leaves = self.leaves
        return replace(before, edits=(*before.edits, edit)).note(f"to {self.leaves}")


@pytest.fixture
def tried(step, profile):
    """A function that runs the loop on a run with a high score; returns treatment, report and the treatments tried."""

    def build(*mitigations, score=0.1, cancelled=lambda: None):
        guard = Guard(policy="mitigate", mitigation=list(mitigations), profile=profile())
        run = guard.begin(model="00000000cafe0001", family="sd15", host="test")
        run.observe(step(score, score))
        assert run.to_mitigate
        made = []

        def redo(treatment):
            made.append(treatment)
            run.extra_rows += 4
            left = score
            for edit in treatment.edits:
                left *= edit.leaves
            return step(left, left)

        began = Start(None, None, None, (4, 8, 8), lambda view: None, cancelled=cancelled)
        treatment = mitigate(run, began, redo)
        assert run.report.actions == (), "nothing is done yet"
        effect = run.carry(treatment)
        effect.edited(range(len(treatment.edits)))
        effect.guided(ONE, GUIDED)
        effect.written()
        return treatment, run.finish(), made

    return build


def test_the_first_attempt_that_helps_ends_it(tried):
    treatment, report, made = tried(Falling(leaves=0.1), Falling(leaves=0.5))
    assert [edit.leaves for edit in treatment.edits] == [0.1]
    assert len(made) == 1
    (attempt,) = report.attempts
    assert (attempt.verdict, attempt.kept, attempt.extra_rows) == ("ordinary", True, 4)
    assert report.scores_before == pytest.approx((1.6, 1.6))
    assert report.scores_after == pytest.approx((0.16, 0.16))
    assert report.actions == ("to 0.1",)
    assert report.extra_rows == 4
    assert report.verdict == "memorized"
    assert report.verdict_after == "ordinary"
    assert message(report).endswith("; mitigated by Falling: now looks ordinary (score 0.16)")


def test_attempts_add_up_until_the_score_is_an_ordinary_prompts(tried):
    treatment, report, _ = tried(Falling(leaves=0.5), Falling(leaves=0.4), Falling(leaves=0.48))
    assert [edit.leaves for edit in treatment.edits] == [0.5, 0.4, 0.48]
    assert [attempt.verdict for attempt in report.attempts] == ["memorized", "memorized", "ordinary"]
    assert report.actions == ("to 0.5", "to 0.4", "to 0.48")
    assert [attempt.changes for attempt in report.attempts] == [("to 0.5",), ("to 0.4",), ("to 0.48",)]


def test_a_score_that_just_slips_under_the_threshold_is_not_enough(tried):
    just_below = 0.0155  # of 0.0159, the 99th percentile
    _, report, made = tried(Falling(leaves=just_below / 0.1), Falling(leaves=0.5))
    assert [attempt.verdict for attempt in report.attempts] == ["ordinary", "ordinary"]
    assert len(made) == 2


def at(distance: float) -> float:
    """The RMS at a distance from ordinary prompts: 0 is the median one, 1 the threshold."""
    return TYPICAL + distance * (LIMIT - TYPICAL)


@pytest.mark.parametrize(("distance", "attempts"), [(0.09, 1), (0.11, 2), (0.5, 2)])
def test_it_ends_where_ordinary_prompts_are(tried, distance, attempts):
    _, report, _ = tried(Falling(leaves=at(distance) / 0.1), Falling(leaves=0.99))
    assert report.attempts[0].verdict == "ordinary"
    assert len(report.attempts) == attempts


@pytest.mark.parametrize(("leaves", "kept"), [(0.7, True), (0.74, True), (0.76, False), (0.8, False), (1.2, False)])
def test_three_quarters_of_the_distance_are_the_most_that_may_be_left(tried, leaves, kept):
    far = at(20.0)
    treatment, report, _ = tried(Falling(leaves=at(20.0 * leaves) / far), score=far)
    assert report.attempts[0].kept is kept
    assert treatment.changes is kept


def test_leaving_the_flagged_range_is_help_however_small_the_step(tried):
    treatment, report, _ = tried(Falling(leaves=at(0.98) / at(1.05)), score=at(1.05))
    assert report.verdict == "suspicious"
    assert [(attempt.verdict, attempt.kept) for attempt in report.attempts] == [("ordinary", True)]
    assert treatment.changes
    assert "; mitigated by Falling: now looks ordinary" in message(report)


def test_an_attempt_that_leaves_the_range_once_more_must_help_again(tried):
    _, report, _ = tried(Falling(leaves=at(0.9) / 0.1), Falling(leaves=1.01), Falling(leaves=0.99))
    assert [attempt.kept for attempt in report.attempts] == [True, False, False]


def test_what_hardly_lowers_the_score_is_taken_back(tried):
    treatment, report, _ = tried(Falling(leaves=0.9), Falling(leaves=1.5), Falling(leaves=0.1))
    assert [edit.leaves for edit in treatment.edits] == [0.1]
    assert [attempt.kept for attempt in report.attempts] == [False, False, True]


def test_failure_is_reported_as_such(tried):
    treatment, report, _ = tried(Falling(leaves=0.95), Falling(leaves=0.8))
    assert not treatment.changes
    assert report.scores_after == ()
    assert report.verdict_after == "unknown"
    reached = "; could not be mitigated (the lowest score reached was 1.28), the picture is the unmitigated one"
    assert message(report).endswith(reached)


def test_a_score_that_stays_high_says_so(tried):
    _, report, _ = tried(Falling(leaves=0.5))
    assert message(report).endswith("; mitigated by Falling: now looks memorized (score 0.8)")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Unsuitable("no text"), "no text"),
        (RuntimeError('"addmm" not implemented for Float8\nmore'), "these weights have no gradient; use"),
        (ValueError("index 81 is out of bounds"), UNFORESEEN),
        (FloatingPointError("NaN"), UNFORESEEN),
        (NotFinite("the loss is NaN; use float32"), "the loss is NaN; use float32"),
        (Refused("the set is another model's"), "the set is another model's"),
        (torch.OutOfMemoryError("out of memory"), "not enough memory; use"),
    ],
)
def test_what_goes_wrong_in_one_attempt_is_noted_and_the_next_is_tried(tried, error, said):
    treatment, report, _ = tried(Falling(error=error), Falling(leaves=0.1))
    assert [edit.leaves for edit in treatment.edits] == [0.1]
    (line,) = report.attempts[0].changes
    assert line.startswith(f"Falling was left out: {said}") and "\n" not in line
    assert not report.attempts[0].kept


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("shape mismatch"), UNFORESEEN), (Unsuitable("no"), "no"), (MemoryError(), "not")],
)
def test_a_first_step_that_cannot_be_made_again_is_noted_and_taken_back(step, profile, error, said):
    guard = Guard(policy="mitigate", mitigation=Falling(leaves=0.1), profile=profile())
    run = guard.begin(model="00000000cafe0001", family="sd15", host="test")
    run.observe(step(0.1))

    def redo(treatment):
        raise error

    treatment = mitigate(run, Start(None, None, None, (4, 8, 8), lambda view: None), redo)
    assert not treatment.changes
    (attempt,) = run.report.attempts
    assert not attempt.kept
    assert attempt.changes[0] == "to 0.1"
    assert attempt.changes[1].startswith(f"the first step could not be made again: {said}")


class Pressed(BaseException):
    """What a stop button raises."""


def test_a_pressed_button_ends_it_between_attempts(tried):
    def cancelled():
        raise Pressed

    with pytest.raises(Pressed):
        tried(Falling(leaves=0.5), cancelled=cancelled)


def test_guidance_alone_is_kept_and_not_scored_again(tried):
    treatment, report, made = tried(Falling(guides=True))
    assert made == []
    assert treatment.guidance
    assert report.attempts[0].kept
    assert report.attempts[0].changes == (
        "guided",
        "acts after the first step, so the first step's score does not change by it",
    )
    assert message(report).endswith("; mitigated by Falling, not scored again")


def test_what_is_kept_unscored_leaves_the_score_that_was_measured(tried):
    _, report, _ = tried(Falling(leaves=0.5), Falling(guides=True))
    assert [attempt.kept for attempt in report.attempts] == [True, True]
    assert report.scores_after == pytest.approx((0.8, 0.8))


def test_a_report_with_attempts_survives_json(tried):
    _, report, _ = tried(Falling(leaves=0.5), Falling(leaves=0.1))
    assert Report.from_dict(report.to_dict()).attempts == report.attempts
    assert report.to_dict()["verdict_after"] == "ordinary"


class TestLadder:
    def rungs(self, choice, **known):
        start = Start(None, None, None, (4, 8, 8), lambda view: None, **known)
        return Guard(policy="mitigate", mitigation=choice).ladder(start)

    def names(self, rungs):
        return [[each.NAME for each in rung] for rung in rungs]

    @pytest.mark.parametrize("choice", [None, "auto", ["auto"]])
    def test_auto_is_cheapest_first(self, choice):
        expected = [["spike_attenuation", "guidance_delay"], ["noise_adjustment"], ["prompt_optimization"]]
        assert self.names(self.rungs(choice)) == expected
        assert self.names(self.rungs(choice, eos_padded=768))[0] == ["padding", "guidance_delay"]

    def test_auto_delays_guidance_for_a_tenth_and_optimises_for_60_iterations(self):
        cheap, noise, last = self.rungs("auto")
        assert (cheap[1].until, noise[0].until, last[0].iterations) == (900.0, 900.0, 60)

    def test_auto_ends_in_a_neuron_mask_if_there_is_one(self):
        mask = get("neuron_mask", neurons=MASK)
        assert self.rungs(["auto", mask])[-1] == (mask,)

    def test_a_chosen_order(self):
        padding = get("padding")
        assert self.names(self.rungs(["attention_scaling", padding])) == [["attention_scaling"], ["padding"]]
        assert self.names(self.rungs("padding")) == [["padding"]]

    @pytest.mark.parametrize(
        ("choice", "line"),
        [
            ("colour", "there is no mitigation 'colour'"),
            (["padding"] * 4, "mitigation: 4 were given; give one to 3"),
            ([], "mitigation: 0 were given"),
            (["auto", "padding"], "auto chooses by itself; beside it only a neuron mask"),
            ([3], "mitigation is 3; give a name"),
        ],
    )
    def test_other_choices_are_refused(self, choice, line):
        with pytest.raises(ValueError, match=line):
            Guard(policy="mitigate", mitigation=choice)


def test_of_several_prompts_only_those_that_look_memorized_are_treated(step, profile):
    guard = Guard(policy="mitigate", mitigation=Falling(leaves=0.1), profile=profile())
    run = guard.begin(model="00000000cafe0001", family="sd15", host="test")
    scores = (0.01, 0.1, 0.008, 0.012)  # the mean of all is that of a prompt that looks memorized, too
    run.observe(step(*scores, prompts=(0, 1, 0, 2)))
    assert run.to_mitigate
    text = torch.randn(4, 77, 6)
    began = Start(Encoded(text), None, torch.randn(4, 4, 8, 8), (4, 8, 8), lambda view: None)
    made = []

    def redo(treatment):
        made.append(treatment)
        return step(0.01, 0.01, 0.008, 0.012, prompts=(0, 1, 0, 2))

    treatment = mitigate(run, began, redo)
    report = run.finish()
    assert treatment.images.tolist() == [1]
    assert made[0].images.tolist() == [1]
    assert report.scores_before == pytest.approx((1.6,))
    assert report.scores_after == pytest.approx((0.16,))
    assert report.verdict_after == "ordinary"
    assert "only images 2 look memorized; the others were left alone" in report.notes


def test_all_prompts_look_memorized_and_all_are_treated(step, profile):
    guard = Guard(policy="mitigate", mitigation=Falling(leaves=0.1), profile=profile())
    run = guard.begin(model="00000000cafe0001", family="sd15", host="test")
    run.observe(step(0.1, 0.2, prompts=(0, 1)))
    began = Start(None, None, None, (4, 8, 8), lambda view: None)
    treatment = mitigate(run, began, lambda treatment: step(0.01, 0.01, prompts=(0, 1)))
    assert treatment.images is None
    assert run.report.scores_before == pytest.approx((1.6, 3.2))


NORM, ENTROPY = "text_noise_norm", "attention_entropy"
ASKED = {"norm": (NORM,), "entropy": (ENTROPY,), "both": (NORM, ENTROPY)}


def attention_of(score: float) -> dict[str, torch.Tensor]:
    """Attention whose entropy is a score between 0 and ln 2."""
    low, high = 1e-9, 0.5
    for _ in range(60):
        p = (low + high) / 2
        rises = -p * math.log(p) - (1 - p) * math.log(1 - p) < score
        low, high = (p, high) if rises else (low, p)
    return {"down_blocks.0.attentions.0.transformer_blocks.0.attn2": torch.tensor([[p, 1 - p]])}


class TestEveryDetector:
    """Norms of ordinary prompts are 0.01 and up to 0.0159, their entropies 0.3 and up to 0.378."""

    @pytest.fixture
    def judged(self, step, profile):
        def run(asked, before, after, guides=False):
            """Each of before and after: the norm, and the entropy or why there is none."""
            known = profile()
            known.distributions[ENTROPY] = fit(spread(0.3, 0.1))
            guard = Guard(detectors=ASKED[asked], policy="mitigate", mitigation=Falling(guides=guides), profile=known)
            run = guard.begin(model="00000000cafe0001", family="sd15", host="test")

            def evidence(norm, entropy):
                read = {"unread": entropy} if isinstance(entropy, str) else {"attention": attention_of(entropy)}
                return step(norm, **read)

            run.observe(evidence(*before))
            assert run.to_mitigate
            began = Start(None, None, None, (4, 8, 8), lambda view: None)
            treatment = mitigate(run, began, lambda treatment: evidence(*after))
            return treatment, run.report

        return run

    @pytest.mark.parametrize("asked", ASKED)
    def test_an_attempt_that_helps_is_scored_by_the_detector_that_flagged_the_run(self, judged, asked):
        treatment, report = judged(asked, (0.1, 0.6), (0.01, 0.3))
        assert treatment.changes
        (attempt,) = report.attempts
        assert (attempt.kept, attempt.verdict) == (True, "ordinary")
        before, after = (0.6, 0.3) if asked == "entropy" else (1.6, 0.16)  # both: the norm is further away
        assert report.scores_before == pytest.approx((before,), rel=1e-4)
        assert report.scores_after == pytest.approx((after,), rel=1e-4)

    @pytest.mark.parametrize("asked", ASKED)
    def test_an_attempt_without_effect_is_taken_back(self, judged, asked):
        treatment, report = judged(asked, (0.1, 0.6), (0.095, 0.59))
        assert not treatment.changes
        assert not report.attempts[0].kept
        assert report.scores_after == ()

    @pytest.mark.parametrize("asked", ["entropy", "both"])
    def test_attention_that_cannot_be_read_again_is_told_and_not_called_later(self, judged, asked):
        _, report = judged(asked, (0.012, 0.6), (0.012, "the layers are replaced"))
        (attempt,) = report.attempts
        assert (attempt.kept, attempt.scores, attempt.verdict) == (True, (), "unknown")
        assert attempt.changes == ("to 1.0", "attention_entropy could not be asked again: the layers are replaced")
        assert "not scored again" in message(report)

    def test_one_detectors_score_never_makes_up_for_anothers(self, judged):
        treatment, report = judged("both", (0.012, 0.6), (0.2, "the layers are replaced"))
        assert not treatment.changes, "the norm rose to where it is flagged"
        assert not report.attempts[0].kept
        treatment, report = judged("both", (0.012, 0.6), (0.2, 0.3))
        assert not treatment.changes
        assert report.attempts[0].verdict == "memorized"

    @pytest.mark.parametrize("asked", ASKED)
    def test_later_is_said_only_where_the_prediction_is_the_same(self, judged, asked):
        _, report = judged(asked, (0.1, 0.6), (0.1, 0.6), guides=True)
        assert report.attempts[0].changes[-1].startswith("acts after the first step")
