"""Flux and Qwen-Image with a true cfg, treated: against sampling loops that are written out here."""

import math
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from memguard import Guard, MemorizationStop, testbed
from memguard.calibration import fit
from memguard.hosts.diffusers.halves import Halves
from memguard.mitigations import available, get
from memguard.mitigations.local_guidance import Limits
from tests.hosts import tiny
from tests.hosts.contract import profile
from tests.hosts.test_diffusers import STEPS, generate, seeded
from tests.hosts.test_diffusers_halves import InTwo, Renormalised, Reversed
from tests.hosts.test_diffusers_mitigation import made
from tests.spread import spread

PROMPT, NEGATIVE, OTHER = "a red fox", "a house", "a blue house on the roof"
HEIGHT, WIDTH, SCALE = 32, 16, 4.0
GIVEN = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "true_cfg_scale": SCALE, "height": HEIGHT, "width": WIDTH}
KINDS = [
    "flux",
    pytest.param(
        "qwen", marks=pytest.mark.skipif(not hasattr(diffusers, "QwenImagePipeline"), reason="diffusers without Qwen")
    ),
]


@pytest.fixture(params=KINDS)
def pipe(request):
    return getattr(tiny, request.param)()


@pytest.fixture
def keep(monkeypatch):
    """Keep every attempt, helpful or not: random weights memorize nothing."""
    monkeypatch.setattr("memguard.loop.helped", lambda *_: True)


def renormalised(pipe):
    return isinstance(pipe, getattr(diffusers, "QwenImagePipeline", ()))


def by_hand(pipe, weigh=lambda gap, step, t, predict: gap, prompts=(PROMPT,), noise=None, seed=3):
    """Latents of a run in which ``weigh`` returns the gap [B, C, h, w] that the scale is applied to, step by step."""
    factor = pipe.vae_scale_factor
    generator = seeded(seed)
    count = len(prompts)
    if renormalised(pipe):
        encoded = [
            dict(zip(("text", "mask"), pipe.encode_prompt(list(p)), strict=True)) for p in (prompts, count * [NEGATIVE])
        ]
        x = pipe.prepare_latents(count, 4, HEIGHT, WIDTH, torch.float32, "cpu", generator)
        more = {"img_shapes": [[(1, HEIGHT // factor // 2, WIDTH // factor // 2)]] * count}
    else:
        encoded = [
            dict(zip(("text", "pooled", "ids"), pipe.encode_prompt(list(p), None), strict=True))
            for p in (prompts, count * [NEGATIVE])
        ]
        x, ids = pipe.prepare_latents(count, 4, HEIGHT, WIDTH, torch.float32, "cpu", generator)
        more = {"img_ids": ids}
    x = x if noise is None else noise
    mu = calculate_shift(x.shape[1], *(pipe.scheduler.config[name] for name in SHIFT))
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS), mu=mu)
    pipe.scheduler.set_begin_index(0)

    def predict(x, t, what):
        names = {"text": "encoder_hidden_states", "mask": "encoder_hidden_states_mask"}
        names |= {"pooled": "pooled_projections", "ids": "txt_ids"}
        given = {names[name]: value for name, value in what.items()}
        return pipe.transformer(x, timestep=t.expand(count) / 1000, **given, **more, return_dict=False)[0]

    def plain(tokens):
        return pipe._unpack_latents(tokens, HEIGHT, WIDTH, factor).reshape(count, 4, HEIGHT // factor, WIDTH // factor)

    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            c, u = (predict(x, t, what) for what in encoded)
            gap = weigh(plain(c - u), step, t, lambda: None)
            gap = pipe._pack_latents(gap, count, 4, HEIGHT // factor, WIDTH // factor)
            c = u + gap
            g = u + SCALE * gap
            if renormalised(pipe):
                g = g * c.norm(dim=-1, keepdim=True) / g.norm(dim=-1, keepdim=True)
            x = pipe.scheduler.step(g, t, x, return_dict=False)[0]
    return x


SHIFT = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")


def flagging(pipe, given=GIVEN):
    """A guard under which the prompt looks memorized, what it saw, and the plain picture."""
    known = Guard()
    plain = generate(pipe, known, **given)
    return known, plain


def mitigating(pipe, mitigation, given=GIVEN):
    known, plain = flagging(pipe, given)
    guard = Guard(policy="mitigate", mitigation=mitigation, profile=profile(known))
    return generate(pipe, guard, **given), guard.report, plain


def attached(pipe, mitigation, given=GIVEN):
    with mitigation.attach(pipe):
        return generate(pipe, **given)


CLOSE = {"rtol": 1e-3, "atol": 1e-3}
STRONG = {"noise_adjustment": {"rounds": 4}}


def test_the_loop_of_this_file_is_the_pipeline_s(pipe):
    torch.testing.assert_close(by_hand(pipe), generate(pipe, **GIVEN), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("before", [0.0, -2.0, 1.0])
@pytest.mark.parametrize("way", ["policy", "attach"])
def test_delayed_guidance(pipe, way, before, keep, caplog):
    delay = get("guidance_delay", before=before, until=600.0)
    found = mitigating(pipe, delay)[0] if way == "policy" else attached(pipe, delay)
    expected = by_hand(pipe, lambda gap, step, t, _: gap * before / SCALE if t > 600 else gap)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert not torch.allclose(found, generate(pipe, **GIVEN), atol=1e-2)
    assert caplog.messages == []


@pytest.mark.parametrize("way", ["policy", "attach"])
def test_local_guidance(pipe, way, keep):
    if way == "policy":
        known, _ = flagging(pipe)
        ordinary = profile(known)
        guard = Guard(policy="mitigate", mitigation="local_guidance", profile=ordinary)
        found, threshold = generate(pipe, guard, **GIVEN), guard.report.findings[0].threshold
    else:
        found, threshold = attached(pipe, get("local_guidance")), None
    limits = Limits(get("local_guidance"), threshold)
    torch.testing.assert_close(found, by_hand(pipe, lambda gap, *_: limits.limited(gap)), **CLOSE)
    assert not torch.allclose(found, generate(pipe, **GIVEN), atol=1e-2)


@pytest.mark.parametrize("way", ["policy", "attach"])
def test_noise_is_moved_by_the_gaps_of_both_calls(pipe, way, keep):
    """One round of the paper's formula, from plain calls."""
    adjusted = get("noise_adjustment", rounds=1, gamma=40.0, until=1000.0)
    found = mitigating(pipe, adjusted)[0] if way == "policy" else attached(pipe, adjusted)
    gaps = {}

    def gap_of(noise):
        def first(gap, step, t, _):
            gaps.setdefault("first", gap) if step == 0 else None
            return gap

        gaps.clear()
        by_hand(pipe, first, noise=noise)
        return gaps["first"]

    def plain(tokens):
        factor = pipe.vae_scale_factor
        return pipe._unpack_latents(tokens, HEIGHT, WIDTH, factor).reshape(1, 4, HEIGHT // factor, WIDTH // factor)

    def packed(x):
        return pipe._pack_latents(x, 1, *x.shape[1:])

    drawn = pipe.prepare_latents(1, 4, HEIGHT, WIDTH, torch.float32, "cpu", seeded())
    x = plain(drawn if isinstance(drawn, torch.Tensor) else drawn[0])
    gap = gap_of(packed(x))
    rho = 50.0 * (x.numel() / (4 * 64 * 64)) ** 0.5
    x = x - 40.0 * (gap_of(packed(x + rho * gap / gap.norm())) - gap)
    torch.testing.assert_close(found, by_hand(pipe, noise=packed(x)), rtol=5e-3, atol=5e-3)
    assert not torch.allclose(found, generate(pipe, **GIVEN), atol=1e-2)


def test_a_score_that_falls_is_kept(pipe):
    """Gradients lower the gap of any model, so that nothing has to be made to count as help."""
    optimised = get("noise_adjustment", method="sample", iterations=40, lr=0.1)
    found, report, plain = mitigating(pipe, optimised)
    assert report.attempts[0].kept, report.attempts
    assert report.scores_after[0] < 0.75 * report.scores_before[0]
    assert report.actions and report.error is None
    assert not torch.equal(found, plain)


@pytest.mark.parametrize("name", available())
def test_strength_0_keeps_every_bit(pipe, name):
    mitigation = made(name, strength=0)
    assert torch.equal(attached(pipe, mitigation), generate(pipe, **GIVEN))
    found, report, plain = mitigating(pipe, mitigation)
    assert torch.equal(found, plain) and not report.actions


def test_of_two_prompts_the_ordinary_one_keeps_every_bit(pipe, keep):
    given = GIVEN | {"prompt": [PROMPT, OTHER], "negative_prompt": 2 * [NEGATIVE]}
    if renormalised(pipe):
        given["prompt"] = [PROMPT, "a blue house"]  # of one length: there is no mask
    known, plain = flagging(pipe, given)
    scores = known.report.findings[0].rms
    chosen = scores.index(max(scores))
    between = replace(
        profile(known), distributions={"text_noise_norm": fit(spread(math.sqrt(scores[0] * scores[1]), 1e-4))}
    )
    guard = Guard(policy="mitigate", mitigation=get("guidance_delay", until=0.0), profile=between)
    found = generate(pipe, guard, **given)
    assert guard.report.error is None and guard.report.attempts[0].kept
    assert torch.equal(found[1 - chosen], plain[1 - chosen])
    off = by_hand(pipe, lambda gap, *_: 0 * gap, prompts=given["prompt"])
    torch.testing.assert_close(found[chosen], off[chosen], **CLOSE)


@pytest.mark.parametrize("at", range(STEPS))
@pytest.mark.parametrize("way", ["policy", "attach"])
def test_an_error_at_the_scheduler_s_step_ends_the_treatment_there(pipe, way, at, keep, monkeypatch, caplog):
    """The steps before it are treated, those from it on are plain; at the first step the picture is the plain one."""
    delay, calls, plain = get("guidance_delay", until=0.0), [], generate(pipe, **GIVEN)
    own = Halves.combined

    def broken(*given):
        calls.append(1)
        if len(calls) == at + 1:
            raise KeyError("inside")
        return own(*given)

    monkeypatch.setattr(Halves, "combined", broken)
    if way == "policy":
        found, report, _ = mitigating(pipe, delay)
        assert report.error == "KeyError: 'inside'"
        assert bool(report.actions) == (at > 0) and report.attempts[0].kept == (at > 0)
    else:
        found = attached(pipe, delay)
        assert any("was left out" in line for line in caplog.messages)
    assert len(calls) == at + 1
    expected = by_hand(pipe, lambda gap, step, *_: gap if step >= at else 0 * gap)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert at > 0 or torch.equal(found, plain)
    assert "step" not in vars(pipe.scheduler) and torch.equal(generate(pipe, **GIVEN), plain)


def test_stop_comes_before_a_step_is_taken(pipe):
    known, _ = flagging(pipe)
    steps, step = [], type(pipe.scheduler).step
    pipe.scheduler.step = lambda *a, **k: steps.append(1) or step(pipe.scheduler, *a, **k)
    before = pipe.scheduler.step
    with pytest.raises(MemorizationStop, match="looks memorized"):
        generate(pipe, Guard(policy="stop", profile=profile(known)), **GIVEN)
    assert not steps and pipe.scheduler.step is before


@pytest.mark.parametrize("way", ["policy", "attach"])
def test_steps_outside_of_a_run_are_the_scheduler_s_own(pipe, way, keep):
    """Inside the block and before, between and after runs."""
    known, plain = flagging(pipe)
    delay = get("guidance_delay", until=0.0)
    block = Guard(policy="mitigate", mitigation=delay, profile=profile(known)) if way == "policy" else delay

    def step():
        scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
        found = []
        for each in (scheduler, pipe.scheduler):
            each.set_timesteps(sigmas=[1.0, 0.5], mu=1.0)
            each.set_begin_index(0)
            drawn = torch.randn(2, 1, 8, 16, generator=seeded())
            found.append(each.step(drawn[0], each.timesteps[0], drawn[1], return_dict=False)[0])
        return torch.equal(*found)

    with block.attach(pipe):
        assert "step" not in vars(pipe.scheduler) and step()
        first = generate(pipe, **GIVEN)
        assert "step" not in vars(pipe.scheduler) and step()
        assert torch.equal(generate(pipe, **GIVEN), first)
    assert not torch.equal(first, plain) and step() and torch.equal(generate(pipe, **GIVEN), plain)


def test_stop_in_the_pipeline_ends_a_treated_run(pipe, keep):
    """Pressed between the two calls of the second step: the pipeline finishes that step, treated, and no other."""
    delay = get("guidance_delay", until=0.0)
    calls = []

    def press(*_):
        calls.append(1)
        pipe._interrupt = len(calls) > 2

    handle = pipe.transformer.register_forward_pre_hook(press)
    found = attached(pipe, delay)
    handle.remove()
    assert len(calls) == 4

    class Over(Exception):
        pass

    seen = []

    def weigh(gap, step, *_):
        if step == 2:
            raise Over
        return 0 * gap

    own = pipe.scheduler.step
    pipe.scheduler.step = lambda *a, **k: seen.append(own(*a, **k)) or seen[-1]
    with pytest.raises(Over):
        by_hand(pipe, weigh)
    del pipe.scheduler.step
    torch.testing.assert_close(found, seen[-1][0], **CLOSE)


class TestInTwo:
    """Stable Diffusion in two calls is Stable Diffusion: each mitigation makes the same of both."""

    GIVEN = {"prompt": PROMPT, "negative_prompt": "ugly", "guidance_scale": 5.0}

    @pytest.mark.parametrize("name", available())
    @pytest.mark.parametrize("cls", [InTwo, Reversed])
    def test_every_mitigation(self, name, cls):
        mitigation = made(name)
        expected = attached(tiny.sd(), mitigation, self.GIVEN)
        torch.testing.assert_close(attached(tiny.sd(cls=cls), mitigation, self.GIVEN), expected, rtol=2e-3, atol=2e-3)

    @pytest.mark.parametrize("name", available())
    def test_every_mitigation_by_policy(self, name, keep):
        (one, first, _), (two, second, _) = (
            mitigating(tiny.sd(cls=cls), made(name), self.GIVEN) for cls in (diffusers.StableDiffusionPipeline, InTwo)
        )
        torch.testing.assert_close(two, one, rtol=2e-3, atol=2e-3)
        assert second.actions == first.actions and second.extra_rows == first.extra_rows
        assert second.scores_after == pytest.approx(first.scores_after, rel=1e-3)

    @pytest.mark.parametrize("name", ["attention_scaling", "padding", "noise_adjustment"])
    def test_what_lowers_the_score_is_kept(self, name):
        """A prompt that the test bed has memorized; ordinary ones are just under what the mitigation makes of it."""
        pipe = InTwo(**testbed.pipeline().components)
        pipe.set_progress_bar_config(disable=True)
        mitigation = get(name, **STRONG.get(name, {}))
        for original in testbed.originals()[:6]:  # at four steps not every one is helped by each
            given = {"prompt": original.caption, "guidance_scale": 5.0, "height": 64, "width": 64}
            (tried,) = mitigating(pipe, mitigation, given)[1].attempts
            known, plain = flagging(pipe, given)
            (before,), (after,) = known.report.findings[0].scores, tried.scores
            if after < 0.95 * before:
                break
        (rms,) = known.report.findings[0].rms
        narrow = fit(spread(rms * (after / before) ** 0.5, math.log(before / after) / 12))
        saved = replace(profile(known), distributions={"text_noise_norm": narrow})
        guard = Guard(policy="mitigate", mitigation=mitigation, profile=saved)
        found, report = generate(pipe, guard, **given), guard.report
        assert report.attempts[0].kept and report.actions and not torch.equal(found, plain)
        assert report.scores_before == (pytest.approx(before),)
        assert report.scores_after == (pytest.approx(after, rel=1e-5),)

    @pytest.mark.parametrize("cls", [InTwo, Reversed, Renormalised])
    def test_guard_by_its_formula(self, cls):
        """Without attenuation it is (s - r cos(pi i / 2 T)) / s of the gap: the step's number and count are right."""
        found = attached(tiny.sd(cls=cls), get("guard", alpha=1.0, repulsion=2.0), self.GIVEN)
        pipe, step = tiny.sd(cls=cls), []

        def join(cond, uncond, scale):
            fade = math.cos(math.pi * len(step) / (2 * STEPS))
            step.append(1)
            return cls.join(uncond + (scale - 2.0 * fade) / scale * (cond - uncond), uncond, scale)

        pipe.join = join
        torch.testing.assert_close(found, generate(pipe, **self.GIVEN), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("way", ["policy", "attach"])
def test_in_one_call_guidance_needs_no_knowledge_of_what_the_pipeline_makes_of_it(way, keep, monkeypatch):
    """Why calls with both prompts are not treated at the scheduler's step: there this would be refused."""
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion"
    monkeypatch.setattr(f"{module}.rescale_noise_cfg", lambda guided, cond, guidance_rescale: guided.tanh())
    pipe, given = tiny.sd(), {"prompt": PROMPT, "guidance_scale": 5.0, "guidance_rescale": 0.7}
    delay = get("guidance_delay", before=2.0, until=0.0)
    found = mitigating(pipe, delay, given)[0] if way == "policy" else attached(pipe, delay, given)
    torch.testing.assert_close(found, generate(pipe, **given | {"guidance_scale": 2.0}), **CLOSE)
    assert not torch.allclose(found, generate(pipe, **given), atol=1e-2)
