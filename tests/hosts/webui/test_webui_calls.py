"""One call of A1111's denoiser under a treatment; the host's one module that it needs is stood in for."""

import random
import sys
import types
from types import SimpleNamespace

import pytest
import torch

from memguard.attributions.moment import Encoded
from memguard.mitigations.base import Treatment
from memguard.mitigations.effect import Effect


@pytest.fixture
def a1111_call(monkeypatch):
    stand_in = types.ModuleType("modules.sd_samplers_timesteps")
    stand_in.CFGDenoiserTimesteps = type("CFGDenoiserTimesteps", (), {})
    monkeypatch.setitem(sys.modules, "modules", types.ModuleType("modules"))
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.delitem(sys.modules, "memguard.hosts.a1111_call", raising=False)
    from memguard.hosts import a1111_call

    yield a1111_call
    sys.modules.pop("memguard.hosts.a1111_call", None)


def treated(**parts):
    return Treatment(**parts).note("text exchanged")


@pytest.mark.parametrize("vector", [False, True])
def test_what_guidance_asks_for_is_the_treated_text(a1111_call, vector):
    own, other = torch.zeros(1, 4, 8), Encoded(torch.ones(1, 4, 8), torch.ones(1, 3) if vector else None)
    call = a1111_call.Call.__new__(a1111_call.Call)
    call.text = {"crossattn": own, "vector": torch.zeros(1, 3)} if vector else own
    call.reference = call.text
    treatment = treated(prompt=other)
    effect = Effect(treatment)
    call.exchange(treatment, effect)
    text = call.text["crossattn"] if vector else call.text
    assert torch.equal(text, other.text) and call.reference is not call.text
    assert effect.done == ("text exchanged",)


def test_a_text_that_is_the_same_is_no_deed(a1111_call):
    call = a1111_call.Call.__new__(a1111_call.Call)
    call.text = call.reference = torch.zeros(1, 4, 8)
    treatment = treated(prompt=Encoded(torch.zeros(1, 4, 8)))
    effect = Effect(treatment)
    call.exchange(treatment, effect)
    assert effect.done == ()


def test_hypertile_draws_as_if_nothing_had_been_computed_beside_it(a1111_call, monkeypatch):
    tiles = SimpleNamespace(RNG_INSTANCE=random.Random(3))
    monkeypatch.setitem(sys.modules, "hypertile", tiles)
    expected = random.Random(3).random()
    with a1111_call.beside(torch.nn.Linear(1, 1)):
        tiles.RNG_INSTANCE.random()
    assert tiles.RNG_INSTANCE.random() == expected
