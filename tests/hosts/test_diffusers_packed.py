"""Guidance is changed in a call that predicts both prompts of packed latents: Bria, against plain computations."""

import statistics
from dataclasses import replace

import diffusers
import pytest
import torch

from memguard import Guard
from memguard.calibration import fit
from memguard.mitigations import get
from tests.hosts import tiny
from tests.hosts.contract import profile
from tests.hosts.test_diffusers import generate, seeded
from tests.spread import spread

pytestmark = pytest.mark.skipif(not hasattr(diffusers, "BriaPipeline"), reason="this diffusers has no Bria")
WIDE = {"height": 16, "width": 32, "max_sequence_length": 16, "guidance_scale": 5.0}
PROMPT = {"prompt": "a red fox", **WIDE}


@pytest.fixture(scope="module")
def pipe():
    return tiny.bria()


def flagging(watch, **changes):
    """A profile at this size, under which the run that was watched is far above ordinary prompts."""
    found = profile(watch)
    return replace(found, conditions=replace(found.conditions, latent=(16, 32)), **changes)


def by_hand(pipe, until, factor, images=slice(None), **settings):
    """A run in which the noise gap of each call at a timestep above ``until`` is multiplied, in the packed tokens."""

    def scaled(module, args, kwargs, output):
        if float(kwargs["timestep"].flatten()[0]) <= until:
            return None
        uncond, cond = output[0].clone().chunk(2)
        cond[images] = uncond[images] + factor * (cond - uncond)[images]
        return (torch.cat([uncond, cond]),)

    handle = pipe.transformer.register_forward_hook(scaled, with_kwargs=True)
    try:
        return generate(pipe, **settings)
    finally:
        handle.remove()


@pytest.mark.parametrize(("before", "until"), [(0.0, 800.0), (0.0, 0.0), (-2.0, 800.0)])
def test_delayed_guidance_is_that_of_the_packed_tokens(pipe, before, until, caplog):
    with get("guidance_delay", before=before, until=until).attach(pipe):
        found = generate(pipe, **PROMPT)
    assert caplog.messages == []
    assert not torch.equal(found, generate(pipe, **PROMPT))
    torch.testing.assert_close(found, by_hand(pipe, until, before / 5.0, **PROMPT))


@pytest.mark.parametrize("name", ["guidance_delay", "local_guidance"])
def test_the_guard_and_the_mitigation_by_itself_agree(pipe, name, monkeypatch):
    monkeypatch.setattr("memguard.loop.helped", lambda *_: True)  # random weights: nothing has to help
    watch = Guard()
    plain = generate(pipe, watch, **PROMPT)
    guard = Guard(policy="mitigate", mitigation=name, profile=flagging(watch))
    found = generate(pipe, guard, **PROMPT)
    assert guard.report.error is None and [attempt.kept for attempt in guard.report.attempts] == [True]
    assert not torch.equal(found, plain)
    if name == "guidance_delay":  # the other takes its number from the profile
        torch.testing.assert_close(found, by_hand(pipe, 500.0, 0.0, **PROMPT))


def test_of_several_prompts_the_ordinary_one_keeps_its_bits(pipe, monkeypatch):
    monkeypatch.setattr("memguard.loop.helped", lambda *_: True)
    both = {**WIDE, "prompt": ["a red fox", "a blue house on the roof"]}
    watch = Guard()
    plain = generate(pipe, watch, **both)
    rms = watch.report.findings[0].rms
    flagged = int(rms[1] > rms[0])
    level = fit(spread(statistics.geometric_mean(rms), 1e-4))
    between = flagging(watch, distributions={"text_noise_norm": level})
    guard = Guard(policy="mitigate", mitigation="guidance_delay", profile=between)
    found = generate(pipe, guard, **both | {"generator": seeded()})
    assert guard.report.error is None and [attempt.kept for attempt in guard.report.attempts] == [True]
    assert torch.equal(found[1 - flagged], plain[1 - flagged])
    torch.testing.assert_close(found, by_hand(pipe, 500.0, 0.0, [flagged], **both))
