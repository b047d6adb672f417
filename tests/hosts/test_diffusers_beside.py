"""What MemGuard computes beside a run leaves the run alone: draws, hooks by position, caches, guards that leave."""

import random
from functools import partial, wraps

import diffusers
import numpy as np
import pytest
import tomesd
import torch

import memguard
from memguard import Guard
from memguard.hosts.diffusers.pipes import size, text_to_image
from memguard.mitigations import get
from tests.hosts import tiny
from tests.hosts.contract import profile
from tests.hosts.test_diffusers import FLUX, finding, generate

PROMPT = "a red fox"
SIZE = {"num_inference_steps": 4}


def picture(pipe, guard=None, **changes):
    """A run of a network that draws, from the same state of every generator."""
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    return generate(pipe, guard, **{"prompt": PROMPT, "num_images_per_prompt": 2} | changes)


def draws(pipe):
    """Let a network draw from all global generators in every call, and use what it drew."""

    def hook(module, args, output):
        return output + 0.1 * torch.rand(()) + 0.1 * np.random.rand() + 0.1 * random.random()

    pipe.unet.conv_in.register_forward_hook(hook)
    return pipe


def merges(pipe):
    """Token merging: draws from a generator of its own, and reads the size of the picture from args[0]."""
    tomesd.apply_patch(pipe, ratio=0.5, max_downsample=2)
    return pipe


def flagging(pipe, **changes):
    """A profile under which the run looks memorized."""
    guard = Guard()
    picture(pipe, guard, **changes)
    return profile(guard)


@pytest.mark.parametrize("patch", [draws, merges])
class TestANetworkThatDraws:
    def test_the_picture_is_that_of_a_run_without_memguard(self, patch, monkeypatch):
        pipe = patch(tiny.sd())
        plain = partial(picture, negative_prompt="ugly", num_inference_steps=3)
        picture(pipe)  # token merging forks its generator once
        state = patch is merges and pipe.unet._tome_info["args"]["generator"].get_state()

        def again(guard=None):
            if patch is merges:
                pipe.unet._tome_info["args"]["generator"].set_state(state)
            return plain(pipe, guard)

        expected = again()
        for guard in (Guard(), Guard(reference="empty", steps=2)):
            assert torch.equal(again(guard), expected)
            assert finding(guard).status == "ok"
        monkeypatch.setattr("memguard.loop.helped", lambda *_: False)  # every attempt is taken back
        saved = flagging(pipe, negative_prompt="ugly", num_inference_steps=3)
        for mitigation in ("noise_adjustment", "prompt_optimization", None):
            guard = Guard(policy="mitigate", mitigation=mitigation, profile=saved)
            assert torch.equal(again(guard), expected)
            assert guard.report.attempts and not guard.report.actions
            assert guard.report.error is None

    def test_scan_explain_and_optimise_leave_the_generators(self, patch):
        pipe = patch(tiny.sd())

        def states():
            own = pipe.unet._tome_info["args"]["generator"] if patch is merges else None
            return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate(), own]

        before = states()
        assert all(
            len(report.findings[0].scores) == 2 for report in memguard.scan(pipe, [PROMPT, "a cat"], num_images=2)
        )
        for method in ("gradient", "ablation"):
            assert memguard.explain(pipe, PROMPT, method, num_images=2, **SIZE).status == "ok"
        memguard.explain(pipe, PROMPT, "attention", maps=("word",), **SIZE)
        memguard.optimize_prompt(pipe, PROMPT, num_images=2, iterations=1, **SIZE)
        memguard.neurons.noise_difference(pipe, PROMPT, 2)
        assert states() == before


def test_a_call_is_repeated_with_its_arguments_as_they_came():
    pipe = tiny.sd()
    saved, seen = flagging(pipe), []
    pipe.unet.register_forward_pre_hook(
        lambda _m, args, kwargs: seen.append((len(args), sorted(kwargs))), with_kwargs=True
    )
    guard = Guard(policy="mitigate", mitigation="noise_adjustment", profile=saved)
    generate(pipe, guard, prompt=PROMPT)
    assert guard.report.extra_rows > 2 and guard.report.error is None
    generate(pipe, Guard(reference="empty"), prompt=PROMPT, negative_prompt="ugly")
    with get("padding").attach(pipe):
        generate(pipe, prompt=PROMPT)
    list(memguard.scan(pipe, [PROMPT]))
    memguard.explain(pipe, PROMPT, **SIZE)
    memguard.optimize_prompt(pipe, PROMPT, iterations=1, **SIZE)
    memguard.neurons.noise_difference(pipe, PROMPT, 2)
    assert len(set(map(str, seen))) == 1 and seen[0][0] == 2  # latent and timestep, as the pipeline gives them


@pytest.mark.parametrize(("height", "width"), [(24, 40), (None, 24), (24, None)])
def test_a_size_is_kept(height, width):
    pipe = tiny.sd()
    sides = size(pipe, text_to_image(pipe), height, width)
    assert sides == {"height": height or 16, "width": width or 16}
    shapes = []
    pipe.unet.register_forward_pre_hook(lambda _m, args: shapes.append(args[0].shape[-2:]))
    memguard.optimize_prompt(pipe, PROMPT, iterations=1, height=height, width=width, **SIZE)
    memguard.neurons.noise_difference(pipe, PROMPT, 2, height=height, width=width)
    assert set(shapes) == {(sides["height"] // 2, sides["width"] // 2)}


# --- guards that leave ------------------------------------------------------------------------------------------------


def test_two_guards_may_leave_in_the_order_in_which_they_came():
    pipe = tiny.sd()
    first, second = Guard(), Guard(detectors=("text_noise_norm", "attention_entropy"))
    one, two, treated = first.attach(pipe), second.attach(pipe), get("padding").attach(pipe)
    one.__enter__(), two.__enter__()
    generate(pipe, prompt=PROMPT)
    run = first.report.run
    one.__exit__(None, None, None)
    treated.__enter__()
    generate(pipe, prompt="a blue house")
    assert first.report.run == run  # it watches no more
    assert second.report.prompt == "a blue house" and len(second.report.findings) == 2
    two.__exit__(None, None, None)
    assert not torch.equal(generate(pipe, prompt=PROMPT), generate(tiny.sd(), prompt=PROMPT))
    treated.__exit__(None, None, None)
    assert type(pipe) is diffusers.StableDiffusionPipeline
    assert torch.equal(generate(pipe, prompt=PROMPT), generate(tiny.sd(), prompt=PROMPT))


def test_a_compiled_unet_has_no_truth(monkeypatch):
    small = {"block_out_channels": (8,), "up_block_types": ("CrossAttnUpBlock2D",)}
    pipe = tiny.sd(**small, down_block_types=("CrossAttnDownBlock2D",))
    expected = generate(pipe, prompt=PROMPT)
    saved = flagging(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    guard = Guard(policy="mitigate", mitigation="padding", profile=saved)
    monkeypatch.setattr("memguard.loop.helped", lambda *_: False)
    assert torch.equal(generate(pipe, guard, prompt=PROMPT), expected)
    assert guard.report.attempts[0].scores and guard.report.error is None
    with get("padding").attach(pipe):
        assert not torch.equal(generate(pipe, prompt=PROMPT), expected)


# --- caches between steps ---------------------------------------------------------------------------------------------


def enabled(kind):
    """A tiny Flux with one of diffusers' caches."""
    pipe = tiny.flux()
    now = lambda: pipe.current_timestep  # noqa: E731
    pipe.transformer.enable_cache(
        {
            "first block": lambda: diffusers.FirstBlockCacheConfig(threshold=10.0),
            "broadcast": lambda: diffusers.PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(0, 1000),
                spatial_attention_block_identifiers=("transformer_blocks",),
                current_timestep_callback=now,
            ),
            "faster": lambda: diffusers.FasterCacheConfig(
                spatial_attention_block_skip_range=2,
                spatial_attention_timestep_skip_range=(0, 950),
                unconditional_batch_skip_range=2,
                spatial_attention_block_identifiers=("transformer_blocks",),
                current_timestep_callback=now,
                is_guidance_distilled=True,
            ),
            "taylor": lambda: diffusers.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1),
        }[kind]()
    )
    return pipe


@pytest.mark.parametrize("kind", ["first block", "broadcast", "faster", "taylor"])
def test_the_caches_of_diffusers_are_neither_read_nor_written(kind):
    pipe = enabled(kind)
    plain = generate(pipe, **FLUX)
    assert not torch.equal(plain, generate(tiny.flux(), **FLUX))  # the cache answers
    guard, free = Guard(reference="empty"), Guard(reference="empty")
    assert torch.equal(generate(pipe, guard, **FLUX), plain)
    generate(tiny.flux(), free, **FLUX)
    assert finding(guard).scores == pytest.approx(finding(free).scores, rel=1e-4)
    settings = {"height": 32, "width": 64, "guidance_scale": 3.5, **SIZE}
    found = memguard.explain(pipe, PROMPT, **settings)
    assert found.method == "ablation" and "cache between steps is on" in found.notes[0]
    assert found.weights == pytest.approx(
        memguard.explain(tiny.flux(), PROMPT, "ablation", **settings).weights, rel=1e-3
    )
    assert torch.equal(generate(pipe, **FLUX), plain)


def attempts(pipe, plain, saved):
    """The lines of a run under policy mitigate, whose picture is the plain one."""
    guard = Guard(policy="mitigate", mitigation="noise_adjustment", profile=saved)
    assert torch.equal(generate(pipe, guard, prompt=PROMPT), plain)
    return guard.report.attempts[0].changes, guard.report


def test_a_cache_that_counts_in_the_model_is_named():
    pipe = tiny.sd()
    saved = flagging(pipe)
    whole = type(pipe.unet).forward
    unet = pipe.unet
    unet.cnt, unet.previous = 0, None

    class Cached(type(unet)):  # as TeaCache and its kin do it
        def forward(self, *args, **kwargs):
            self.cnt += 1
            if self.cnt % 2 == 0 and self.previous is not None:
                return self.previous
            self.previous = whole(self, *args, **kwargs)
            return self.previous

    unet.__class__ = Cached
    plain, counted = generate(pipe, prompt=PROMPT), unet.cnt
    unet.cnt, unet.previous = 0, None
    guard = Guard(reference="empty")
    generate(pipe, guard, prompt=PROMPT, guidance_scale=1.0)
    unet.cnt, unet.previous = 0, None
    changes, report = attempts(pipe, plain, saved)
    assert "the model keeps cnt" in changes[0] and "turn it off" in changes[0]
    assert unet.cnt == counted and report.actions == ()
    assert finding(guard).scores == () and "cnt" in finding(guard).status


def test_a_forward_that_keeps_something_is_named():
    pipe = tiny.sd()
    saved = flagging(pipe)
    whole, held = pipe.unet.forward, {}  # as DeepCache does it

    def wrapped(*args, **kwargs):
        held["calls"] = held.get("calls", 0) + 1
        return whole(*args, **kwargs)

    pipe.unet.forward = wrapped
    plain = generate(pipe, prompt=PROMPT)
    calls = held.pop("calls")
    changes, report = attempts(pipe, plain, saved)
    assert "stands in the place of the model's own forward" in changes[0]
    assert held["calls"] == calls and report.actions == ()


def test_the_same_answer_to_another_prompt_is_no_score(monkeypatch):
    pipe = tiny.sd()
    plain, kept = type(pipe.unet).forward, []

    @wraps(plain)
    def cached(self, *args, **kwargs):
        kept.append(plain(self, *args, **kwargs))
        return kept[0]

    monkeypatch.setattr(type(pipe.unet), "forward", cached)
    guard = Guard(reference="empty")
    generate(pipe, guard, prompt=PROMPT, guidance_scale=1.0)
    assert finding(guard).scores == ()
    assert finding(guard).status.startswith("the model predicts the same for other input")
