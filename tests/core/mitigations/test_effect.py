"""What a report calls an action: what a treatment has changed in a tensor of the run, and nothing else."""

from dataclasses import replace

import pytest
import torch

from memguard.attributions.moment import Encoded
from memguard.guard import Guard
from memguard.loop import mitigate
from memguard.mitigations import get
from memguard.mitigations.base import Start, Step, Treatment
from memguard.mitigations.edit import Edit, Plan
from memguard.mitigations.effect import NOTHING, Effect
from memguard.mitigations.subset import Subset
from memguard.records import NeuronSet
from memguard.wording import message

GAP = torch.ones(2, 4, 6, 8)
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def at(timestep: float) -> Step:
    return Step(0, 10, 1.0, timestep, 7.5, lambda view: GAP, Encoded(torch.zeros(2, 77, 6)), GAP, torch.zeros_like(GAP))


class Silent(Edit):
    """Silences values."""

    def __call__(self, q, k, v, site):
        return q, k, v * 0


def test_each_note_stands_for_the_parts_that_came_with_it(start):
    subset = Subset(start(rows=2), [1])
    began = subset.start
    padding = get("padding", variant="partial").treat(began, Treatment())
    both = get("noise_adjustment", rounds=1).treat(began, padding)
    assert [parts for _, parts in both.deeds] == [{"prompt"}, {"noise"}, {"guidance 0"}]
    assert [line for line, _ in both.deeds] == list(both.notes)
    wide = subset.widened(get("neuron_mask", neurons=NeuronSet({LAYER: (1,)})).treat(began, both))
    assert wide.deeds[-1][1] == {"edit 0"}
    assert wide.note("a remark").deeds == wide.deeds


def test_text_and_noise_are_done_once_they_differ():
    told = []
    meant = replace(Treatment(), prompt=Encoded(torch.ones(1, 2, 3))).note("text").note("a remark")
    effect = Effect(meant, told.append)
    effect.changed("prompt", torch.zeros(2), torch.zeros(2))
    assert (effect.done, effect.left, told) == ((), ("text",), [])
    effect.changed("prompt", torch.zeros(2), torch.tensor([0.0, 1.0], dtype=torch.float16))
    assert (effect.done, effect.left, told) == (("text",), (), [("text",)])


def test_a_line_of_two_parts_is_done_once_both_are():
    text = Encoded(torch.ones(1, 2, 3))
    effect = Effect(replace(Treatment(), prompt=text, reference=text).note("both texts"))
    effect.changed("prompt", torch.zeros(2), torch.ones(2))
    assert (effect.done, effect.left) == ((), ("both texts",))
    effect.changed("reference", torch.zeros(2), torch.ones(2))
    assert (effect.done, effect.left) == (("both texts",), ())


def test_guidance_is_done_once_its_gap_is_written(start):
    effect = Effect(get("guidance_delay", until=900.0).treat(start(), Treatment()))
    assert effect.guided(GAP, at(800.0)) is GAP
    effect.written()
    assert effect.done == ()
    assert not effect.guided(GAP, at(950.0)).any()
    assert effect.done == (), "the gap is not in the prediction yet"
    effect.written()
    assert effect.done == ("guidance scale 0 until timestep 900",)


def test_guidance_acts_on_what_the_one_before_it_left(start):
    meant = get("guidance_delay", until=0.0, before=3.75).treat(start(), Treatment())
    meant = get("guidance_delay", until=0.0, before=1.5).treat(start(), meant)
    out = Effect(meant).guided(GAP, at(500.0))
    torch.testing.assert_close(out, GAP * 0.5 * 0.2)


def plan(edits, effect):
    return Plan(edits, torch.tensor([False, True]), None, effect=effect)


def attend(plan, layer):
    values = torch.ones(2, 3, 4)
    return plan.attend(layer, 2, 1.0, values, values, values, lambda q, k, v, *_: q * v.sum())


def test_an_edit_is_done_by_the_first_layer_that_it_changes(start):
    began = start(rows=1)
    meant = get("spike_attenuation").treat(began, Treatment())
    effect = Effect(meant)
    attend(plan(meant.edits, effect), "up_blocks.1.attentions.0.transformer_blocks.0.attn2")
    assert effect.done == (), "no early layer"
    meant = replace(Treatment(), edits=(Silent(),)).note("values silenced")
    effect = Effect(meant)
    out = attend(plan(meant.edits, effect), "mid")
    assert not out.any()
    assert effect.done == ("values silenced",)


def test_an_edit_that_only_leaves_columns_out_is_done_too(start):
    class Cut(Edit):
        def keep(self, conditional, groups):
            return torch.tensor([[True, True, True], [True, False, True]])

    meant = replace(Treatment(), edits=(Edit(), Cut())).note("cut")
    effect = Effect(meant)
    attend(plan(meant.edits, effect), "mid")
    assert (effect.lacks(0), effect.lacks(1)) == (True, False)


def test_two_plans_of_one_call_are_chained_and_each_effect_is_told_its_own(start):
    class Shift(Edit):
        def __call__(self, q, k, v, site):
            return q, k, v + 1

    first, second = (
        replace(Treatment(), edits=(Edit(), edit)).note(line)
        for edit, line in ((Silent(), "silenced"), (Shift(), "up"))
    )
    told = Effect(first), Effect(second)
    both = plan(first.edits, told[0]).followed_by(plan(second.edits, told[1]))
    values = torch.full((2, 3, 4), 5.0)
    assert torch.equal(both.attend("mid", 2, 1.0, values, values, values, lambda q, k, v, *_: v), torch.ones(2, 3, 4))
    assert [[each.lacks(number) for number in (0, 1)] for each in told] == [[True, False], [True, False]]
    plan(first.edits, None).followed_by(plan(second.edits, None)).attend("mid", 2, 1.0, *[values] * 3, lambda q, *_: q)


def test_chained_plans_keep_the_columns_that_both_keep_and_the_known_layout():
    class Cut(Edit):
        def __init__(self, column):
            self.column = column

        def keep(self, conditional, groups):
            return (torch.arange(3) != self.column).expand(2, 3)

    groups = torch.ones(2, 3, dtype=torch.int8)
    first, second = Plan((Cut(0),), torch.tensor([False, True]), groups), plan((Cut(2),), None)
    both = first.followed_by(second)
    assert both.groups is groups
    shapes = []
    values = torch.ones(2, 3, 4)
    both.attend("mid", 2, 1.0, values, values, values, lambda q, k, v, *_: shapes.append(k.shape[1]) or q)
    assert shapes == [1]


def test_a_broken_layer_has_done_nothing():
    meant = replace(Treatment(), edits=(Silent(),)).note("values silenced")
    effect = Effect(meant)

    def broken(*_):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        plan(meant.edits, effect).attend("mid", 2, 1.0, *[torch.ones(2, 3, 4)] * 3, broken)
    assert effect.done == ()


def test_a_first_call_that_is_used_brings_its_effect_along():
    meant = replace(Treatment(), edits=(Silent(),)).note("values silenced")
    made = Effect(meant)
    attend(plan(meant.edits, made), "mid")
    effect = Effect(meant)
    effect.join(made)
    assert effect.done == ("values silenced",)


@pytest.fixture
def mitigated(step, profile):
    """A function that returns a flagged run, its treatment and its effect after some mitigations."""

    def build(*names):
        guard = Guard(policy="mitigate", mitigation=list(names), profile=profile())
        run = guard.begin(model="00000000cafe0001", family="sd15", host="test")
        run.observe(step(0.1))
        text = Encoded(torch.ones(1, 77, 6))
        began = Start(text, text, torch.ones(1, 4, 8, 8), (4, 8, 8), lambda view: view.prompt.text.new_ones(1, 4, 8, 8))
        treatment = mitigate(run, began, lambda treatment: step(0.01))
        return run, run.carry(treatment)

    return build


class TestReport:
    def test_what_is_carried_out_becomes_an_action(self, mitigated):
        run, effect = mitigated("guidance_delay")
        assert run.report.actions == ()
        effect.guided(GAP, at(950.0))
        effect.written()
        assert run.finish().actions == ("guidance scale 0 until timestep 500",)
        assert run.report.attempts[0].kept

    def test_what_never_took_effect_is_told_as_such(self, mitigated):
        run, effect = mitigated("guidance_delay")
        report = run.finish()
        assert report.actions == ()
        assert report.notes == (f"guidance scale 0 until timestep 500: {NOTHING}",)
        assert not report.attempts[0].kept
        assert report.attempts[0].changes[-1] == NOTHING
        assert message(report).endswith("; could not be mitigated, the picture is the unmitigated one")

    def test_the_rest_of_a_treatment_stays(self, mitigated):
        run, effect = mitigated("noise_adjustment")
        effect.changed("noise", torch.zeros(2), torch.ones(2))
        report = run.finish()
        assert report.actions == ("starting noise moved 2 times",)
        assert report.attempts[0].kept
        assert report.scores_after == report.attempts[0].scores
        assert report.notes == (f"guidance scale 0 until timestep 900: {NOTHING}",)

    def test_scores_of_what_came_to_nothing_are_not_those_of_the_picture(self, mitigated):
        run, effect = mitigated("noise_adjustment")
        assert run.report.scores_after
        assert run.finish().scores_after == ()
