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
from memguard.sampling import treated
from memguard_pack.memguard.hosts.webui.session import SKIPPED


@pytest.fixture
def a1111_call(monkeypatch):
    stand_in = types.ModuleType("modules.sd_samplers_timesteps")
    stand_in.CFGDenoiserTimesteps = type("CFGDenoiserTimesteps", (), {})
    modules = types.ModuleType("modules")
    modules.shared = SimpleNamespace(opts=SimpleNamespace(sgm_noise_multiplier=False))
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.delitem(sys.modules, "memguard.hosts.a1111_call", raising=False)
    from memguard.hosts import a1111_call

    yield a1111_call
    sys.modules.pop("memguard.hosts.a1111_call", None)


def called(a1111_call, text, x=None, weights=((1.0,), (1.0,)), sigma=4.0):
    """A call of a k-diffusion sampler for two images."""
    parts = [[SimpleNamespace(weight=weight) for weight in image] for image in weights]
    rows = sum(map(len, parts)) + len(parts)
    engine = SimpleNamespace(alphas_cumprod=torch.linspace(0.99, 0.01, 10))
    denoiser = SimpleNamespace(
        p=SimpleNamespace(sd_model=engine, init_latent=None),
        sampler=SimpleNamespace(sampler_extra_args={"cond": SimpleNamespace(batch=parts)}),
        inner_model=SimpleNamespace(sigma_to_t=lambda sigma: 100 * sigma),
    )
    x = torch.zeros(rows, 1, 2, 2) if x is None else x
    given = SimpleNamespace(denoiser=denoiser, x=x, sigma=torch.full((rows,), sigma), image_cond=None)
    given.text_cond = given.text_uncond = text
    return a1111_call.Call(given, restarts=True)


@pytest.mark.parametrize("vector", [False, True])
def test_what_guidance_asks_for_is_the_treated_text(a1111_call, vector):
    own, other = torch.zeros(2, 4, 8), Encoded(torch.ones(2, 4, 8), torch.ones(2, 3) if vector else None)
    call = called(a1111_call, {"crossattn": own, "vector": torch.zeros(2, 3)} if vector else own)
    treatment = Treatment(prompt=other).note("text exchanged")
    effect = Effect(treatment)
    call.exchange(treated(call.given, treatment, effect))
    text = call.text["crossattn"] if vector else call.text
    assert torch.equal(text, other.text) and call.reference is not call.text
    assert torch.equal(call.given["prompt"].text, other.text) and not call.given["negative"].text.any()
    assert effect.done == ("text exchanged",)


def test_a_text_that_is_the_same_is_no_deed(a1111_call):
    call = called(a1111_call, torch.zeros(2, 4, 8))
    treatment = Treatment(prompt=Encoded(torch.zeros(2, 4, 8))).note("text exchanged")
    effect = Effect(treatment)
    treated(call.given, treatment, effect)
    assert effect.done == ()


def test_predictions_are_in_units_of_epsilon_and_written_back_in_those_of_the_sampler(a1111_call):
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(2, 1, 2, 2, generator=drawn).repeat(2, 1, 1, 1)
    call = called(a1111_call, torch.zeros(2, 4, 8), x)
    raw = torch.randn(4, 1, 2, 2, generator=drawn)
    call.raw = raw.clone()
    torch.testing.assert_close(call.predicted["prompt"], (x[:2] - raw[:2]) / 4)
    torch.testing.assert_close(call.predicted["negative"], (x[2:] - raw[2:]) / 4)
    torch.testing.assert_close(call.noise, x[:2] / 4)
    torch.testing.assert_close(call.gap(), (raw[2:] - raw[:2]) / 4)
    other = torch.randn(2, 1, 2, 2, generator=drawn)
    call.put({"prompt": other}, torch.tensor([1]))
    assert torch.equal(call.raw[[0, 2, 3]], raw[[0, 2, 3]])
    torch.testing.assert_close(call.raw[1], (x[1] - 4 * other[1]))
    torch.testing.assert_close(call.predicted["prompt"][1], other[1])
    call.put({"negative": other})
    torch.testing.assert_close(call.raw[2:], x[2:] - 4 * other)
    call.undo()
    assert torch.equal(call.raw, raw)


def test_what_is_left_out_is_said(a1111_call):
    call = called(a1111_call, torch.zeros(2, 4, 8))
    call.raw = torch.ones(4, 1, 2, 2)
    assert set(call.predicted) == {"prompt"} and call.why == SKIPPED  # both alike: the second is the first one's own
    joined = called(a1111_call, torch.zeros(3, 4, 8), weights=((0.25, 0.75), (1.0,)))
    joined.raw = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).reshape(5, 1, 1, 1).expand(5, 1, 2, 2)
    assert "prompt" not in joined.given and "negative" in joined.given
    means = -(0.25 * 1 + 0.75 * 2) / 4, -3 / 4
    torch.testing.assert_close(joined.predicted["prompt"][:, 0, 0, 0], torch.tensor(means))
    three = called(a1111_call, torch.zeros(2, 4, 8))
    three.raw = torch.zeros(6, 1, 2, 2)
    assert not three.predicted and three.why == a1111_call.EDIT and three.gap() is None


def test_hypertile_draws_as_if_nothing_had_been_computed_beside_it(a1111_call, monkeypatch):
    tiles = SimpleNamespace(RNG_INSTANCE=random.Random(3))
    monkeypatch.setitem(sys.modules, "hypertile", tiles)
    expected = random.Random(3).random()
    with a1111_call.beside(torch.nn.Linear(1, 1)):
        tiles.RNG_INSTANCE.random()
    assert tiles.RNG_INSTANCE.random() == expected
