"""Edits of cross-attention that is found by structure against torch's own function, called with edited arguments."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional

from memguard import Guard, mitigations
from memguard.hosts.diffusers.edits import PLAN
from memguard.mitigations.edit import Edit
from tests.hosts import tiny_crossed
from tests.hosts.breaking import broken, functions
from tests.hosts.contract import profile
from tests.hosts.contract_treated import Given
from tests.hosts.test_diffusers_structure import FAMILIES, layers, run

CUT, SCALED, RAISED = 0, 1, 2  # columns of the prompt's words
NEAR = {"rtol": 1e-3, "atol": 1e-4}
FITTING = [family for family in FAMILIES if family not in ("latte", "allegro")]


class Three(Edit):
    """One word is left out, the logits of one are multiplied, those of one are raised."""

    def __call__(self, q, k, v, site):
        factor = torch.ones(len(k), k.shape[1], 1)
        factor[site.conditional, SCALED] = -3.0
        return q, k * factor, v

    def keep(self, conditional, groups):
        if groups is None:
            return None  # a call without the prompt
        kept = torch.ones(len(conditional), groups.shape[1], dtype=torch.bool)
        kept[conditional, CUT] = False
        return kept

    def bias(self, q, k, site):
        more = torch.zeros(len(k), 1, 1, k.shape[1])
        more[site.conditional, :, :, RAISED] = 2.0
        return more.expand(-1, site.heads, q.shape[1], -1)


class Twice(Edit):
    """The logits of a word are doubled, in one layer."""

    def __init__(self, layer):
        self.layer = layer

    def acts(self, layer):
        return layer == self.layer

    def __call__(self, q, k, v, site):
        factor = torch.ones(len(k), k.shape[1], 1)
        factor[site.conditional, SCALED] = 2.0
        return q, k * factor, v


def given(*edits):
    return Given(lambda start: {"edits": edits})


@contextmanager
def by_hand(pipe, family, change, names=None):
    """Let torch's function get other arguments in the prompt's rows of some layers."""
    plain, inside, handles, calls = functional.scaled_dot_product_attention, [], [], [0]

    def attention(query, key, value, attn_mask=None, *args, **kwargs):
        if inside:
            rows, tokens = len(query), key.shape[2]
            prompt = torch.arange(rows) >= rows // 2
            if FAMILIES[family][1] == 2:
                prompt = torch.full((rows,), calls[0] % 2 == 1)  # Wan: a call for each
            mask = torch.zeros(rows, 1, 1, tokens) if attn_mask is None else attn_mask.clone()
            key, attn_mask = change(key.clone(), mask, prompt)
        return plain(query, key, value, attn_mask, *args, **kwargs)

    handles.append(pipe.transformer.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1)))
    for name in names or layers(family):
        layer = pipe.transformer.get_submodule(name)
        handles.append(layer.register_forward_pre_hook(lambda *_: inside.append(1)))
        handles.append(layer.register_forward_hook(lambda *_: inside.pop() and None))
    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain
        for handle in handles:
            handle.remove()


def three(key, mask, prompt):
    key[prompt, :, SCALED] *= -3
    mask[prompt, ..., CUT] = -torch.inf
    mask[prompt, ..., RAISED] += 2
    return key, mask


@pytest.mark.parametrize("family", FITTING)
def test_keys_masks_and_biases_are_those_of_torch(family):
    pipe = getattr(tiny_crossed, family)()
    plain = run(pipe, family)
    with by_hand(pipe, family, three):
        expected = run(pipe, family)
    with given(Three()).attach(pipe):
        made = run(pipe, family)
    torch.testing.assert_close(made, expected, **NEAR)
    assert not torch.allclose(made, plain, **NEAR)
    assert torch.equal(run(pipe, family), plain) and PLAN.get() is None
    assert not any("forward" in vars(module) for module in pipe.transformer.modules())


def test_mitigations_that_are_nested_act_once_each():
    pipe = tiny_crossed.wan()
    first, last = layers("wan")

    def doubled(key, mask, prompt):
        key[prompt, :, SCALED] *= 2
        return key, mask

    with by_hand(pipe, "wan", doubled, [first]), given(Twice(last)).attach(pipe):
        expected = run(pipe, "wan")
    with given(Twice(first)).attach(pipe), given(Twice(last)).attach(pipe):
        torch.testing.assert_close(run(pipe, "wan"), expected, **NEAR)
    with given(Twice(first), Twice(last)).attach(pipe):
        torch.testing.assert_close(run(pipe, "wan"), expected, **NEAR)


def test_padding_that_the_model_attends_to_is_left_out(caplog):
    pipe = tiny_crossed.wan()

    def cut(key, mask, prompt):
        mask[prompt, ..., 3:] = -torch.inf
        return key, mask

    with by_hand(pipe, "wan", cut):
        expected = run(pipe, "wan")
    with mitigations.get("attention_scaling").attach(pipe):
        torch.testing.assert_close(run(pipe, "wan"), expected, **NEAR)
    assert not caplog.messages


@pytest.mark.parametrize("family", ["pixart", "ltx", "latte"])
def test_padding_that_the_model_masks_is_not_said_to_be_left_out(family, caplog):
    pipe = getattr(tiny_crossed, family)()
    plain = run(pipe, family)
    with mitigations.get("attention_scaling").attach(pipe):
        assert torch.equal(run(pipe, family), plain)
    assert [line.endswith("never took effect in this run") for line in caplog.messages] == [True]


def test_under_policy_mitigate_the_report_has_what_acts(monkeypatch):
    monkeypatch.setattr("memguard.loop.helped", lambda *_: True)
    pipe = tiny_crossed.pixart()
    scored = Guard()
    plain = run(pipe, "pixart", scored)
    with by_hand(pipe, "pixart", three):
        expected = run(pipe, "pixart")
    guard = Guard(policy="mitigate", mitigation=given(Three()), profile=profile(scored))
    torch.testing.assert_close(run(pipe, "pixart", guard), expected, **NEAR)
    assert guard.report.actions == ("as given",) and not torch.equal(expected, plain)
    scaling = mitigations.get("attention_scaling")
    guard = Guard(policy="mitigate", mitigation=scaling, profile=profile(scored))
    assert torch.equal(run(pipe, "pixart", guard), plain) and guard.report.actions == ()


@pytest.mark.parametrize("name", ["spike_attenuation", "guard"])
def test_layers_in_one_row_have_no_way_down(name, caplog):
    pipe = tiny_crossed.wan()
    plain = run(pipe, "wan")
    with mitigations.get(name).attach(pipe):
        assert torch.equal(run(pipe, "wan"), plain)
    (line,) = caplog.messages
    assert line.endswith("the layers of this model stand in one row")


def test_each_function_may_break_under_a_treatment(caplog):
    pipe = tiny_crossed.pixart()
    plain = run(pipe, "pixart")

    def treated():
        with given(Three()).attach(pipe):
            return run(pipe, "pixart")

    whole = treated()
    mine = [n for n in functions("memguard.hosts.diffusers", treated) if n[0].endswith(("edited", "attended"))]
    assert not torch.equal(whole, plain) and len(mine) > 8
    for module, name in mine:
        if name == "Edited._guarded":
            continue  # what stands around the hooks
        caplog.clear()
        with broken("memguard.hosts.diffusers", module, name):
            made = treated()
        assert torch.equal(made, plain) or torch.equal(made, whole), name
        assert torch.equal(made, whole) or caplog.messages, name
        assert not any("list index" in line for line in caplog.messages), name
