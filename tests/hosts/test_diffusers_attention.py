"""The attention detectors in diffusers against attention taken from the layers' inputs, step by step."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, HeunDiscreteScheduler, KDPM2DiscreteScheduler, PNDMScheduler

import memguard
from memguard import Guard
from memguard.hosts.diffusers.projected import Reading
from memguard.hosts.diffusers.rows import Prompts, Unscored
from tests.hosts import tiny
from tests.hosts.test_diffusers_halves import InTwo

PROMPTS = ["a red fox", "a blue house by the sea"]
STEPS = 10
E, D = "attention_entropy", "attention_entropy_late"


@pytest.fixture(scope="module")
def pipe():
    return tiny.sd()


@contextmanager
def recording(unet):
    """Collect, per UNet call, the probabilities of every cross-attention layer from its inputs and its weights."""
    calls, handles = [], [unet.register_forward_pre_hook(lambda *_: calls.append({}))]

    def look(name):
        def hook(layer, args, kwargs):
            states, context = args[0], kwargs["encoder_hidden_states"]
            q, k = states @ layer.to_q.weight.T, context @ layer.to_k.weight.T
            heads = zip(q.chunk(layer.heads, -1), k.chunk(layer.heads, -1), strict=True)
            each = [(a @ b.transpose(1, 2) / math.sqrt(a.shape[-1])).softmax(-1) for a, b in heads]
            calls[-1][name] = torch.stack(each).mean((0, 2)).double()  # heads and positions

        return hook

    for name, layer in unet.named_modules():
        if name.endswith("attn2"):
            handles.append(layer.register_forward_pre_hook(look(name), with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def run(pipe, prompts, guard=None, images=1):
    settings = {"num_inference_steps": STEPS, "num_images_per_prompt": images, "output_type": "latent"}
    settings["generator"] = torch.Generator("cpu").manual_seed(3)
    if guard is None:
        return pipe(prompts, **settings).images
    with guard.attach(pipe):
        return pipe(prompts, **settings).images


def h(p):
    return torch.special.entr(p).sum(-1)


def test_e_and_d_equal_an_independent_computation_and_touch_nothing(pipe):
    with recording(pipe.unet) as calls:
        plain = run(pipe, PROMPTS, images=2)
    guard = Guard(detectors=["text_noise_norm", E, D])
    assert torch.equal(run(pipe, PROMPTS, guard, images=2), plain)
    norm, early, late = guard.report.findings
    cond = slice(4, 8)  # after the rows of the negative prompt
    layer = next(name for name in calls[0] if name.startswith("down_blocks.1"))
    assert early.scores == pytest.approx(h(calls[0][layer][cond]).tolist(), rel=1e-4)
    mean = torch.stack([torch.stack(list(call.values())).mean(0)[cond] for call in calls])
    lengths = [len(pipe.tokenizer(prompt).input_ids) for prompt in PROMPTS for _ in range(2)]
    summary = torch.stack([torch.arange(mean.shape[-1]) >= length - 1 for length in lengths])
    part = (torch.special.entr(mean) * summary).sum(-1)
    expected = h(mean[8:]).mean(0) + (part[8:] - part[0]).abs().mean(0)
    assert late.scores == pytest.approx(expected.tolist(), rel=1e-4)
    assert (norm.status, len(norm.per_step), len(late.per_step)) == ("ok", 1, 2) and guard.report.extra_rows == 0
    assert not any(module._forward_hooks for module in pipe.unet.modules())


# of ten steps: the schedulers whose model calls are not steps, and the calls that are the first of steps 8 and 9
SAMPLERS = {
    "plain": (DDIMScheduler, {}, (8, 9), 10),
    "heun": (HeunDiscreteScheduler, {}, (15, 17), 19),
    "half-way": (KDPM2DiscreteScheduler, {}, (16, 18), 19),
    "pndm without prk": (PNDMScheduler, {"skip_prk_steps": True}, (9, 10), 11),
    "pndm with prk": (PNDMScheduler, {"skip_prk_steps": False}, (17, 18), 19),
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_late_steps_are_sampling_steps_where_model_calls_are_not(pipe, sampler):
    kind, settings, late, count = SAMPLERS[sampler]
    before = pipe.scheduler
    try:
        pipe.scheduler = kind.from_config(before.config, **settings)
        with recording(pipe.unet) as calls:
            plain = run(pipe, PROMPTS[:1])
        guard = Guard(detectors=[E, D])
        assert torch.equal(run(pipe, PROMPTS[:1], guard), plain)
    finally:
        pipe.scheduler = before
    assert len(calls) == count
    mean = torch.stack([torch.stack(list(call.values())).mean(0)[1] for call in calls])
    summary = torch.arange(mean.shape[-1]) >= len(pipe.tokenizer(PROMPTS[0]).input_ids) - 1
    part = (torch.special.entr(mean) * summary).sum(-1)
    expected = h(mean[list(late)]).mean() + (part[list(late)] - part[0]).abs().mean()
    assert guard.report.findings[1].scores == pytest.approx((float(expected),), rel=1e-4)


def test_a_scan_scores_every_prompt_as_alone(pipe):
    together = [r.findings[0].scores for r in memguard.scan(pipe, PROMPTS, [E], num_images=2)]
    alone = [next(memguard.scan(pipe, [prompt], [E], num_images=2)).findings[0].scores for prompt in PROMPTS]
    for found, expected in zip(together, alone, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_a_scan_cannot_wait_for_late_steps(pipe):
    with pytest.raises(ValueError, match=f"^a scan ends after the first steps, and {D} needs the last; use a Guard$"):
        memguard.scan(pipe, PROMPTS, [D])


def test_a_profile_holds_the_entropy_too(pipe):
    profile = memguard.calibrate(pipe, [f"{word} {i}" for i in range(15) for word in "a b c d".split()], [E])
    assert set(profile.distributions) == {E}
    found = next(memguard.scan(pipe, PROMPTS, [E], profile=profile)).findings[0]
    assert found.percentile is not None and found.verdict in ("ordinary", "suspicious", "memorized")


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_model_without_cross_attention_has_a_reason_beside_its_other_score(family):
    pipe = getattr(tiny, family)()
    norm, entropy = next(memguard.scan(pipe, PROMPTS[:1], ["text_noise_norm", E])).findings
    assert norm.scores and not entropy.scores
    assert entropy.status.endswith("has no cross-attention layers: prompt and picture share their attention")


def test_fused_projections_have_a_reason(pipe):
    pipe.fuse_qkv_projections()
    try:
        norm, entropy = next(memguard.scan(pipe, PROMPTS[:1], ["text_noise_norm", E])).findings
    finally:
        pipe.unfuse_qkv_projections()
    assert norm.scores and "its projections are fused or replaced" in entropy.status


@pytest.mark.parametrize("order", [("prompt", "negative"), ("negative", "prompt")])
def test_of_two_calls_for_a_step_that_with_the_prompt_is_read(order):
    two = tiny.sd(cls=type("Two", (InTwo,), {"order": order}))
    for name, layer in two.unet.named_modules():
        if name.endswith("attn2"):
            layer.to_q.weight.data *= 200  # else every column has its equal share under either prompt
    with recording(two.unet) as calls:
        plain = run(two, PROMPTS[0])
    guard = Guard(detectors=[E])
    assert torch.equal(run(two, PROMPTS[0], guard), plain)
    first = calls[order.index("prompt")]
    layer = next(name for name in first if name.startswith("down_blocks.1"))
    other = h(calls[1 - order.index("prompt")][layer]).tolist()
    assert guard.report.findings[0].scores == pytest.approx(h(first[layer]).tolist(), rel=1e-3)
    assert guard.report.findings[0].scores != pytest.approx(other, rel=1e-2)


@pytest.mark.parametrize("order", [None, ("prompt", "negative"), ("negative", "prompt")])
def test_rows_that_the_scheduler_tells_have_the_attention_of_the_prompt(order, monkeypatch):
    two = tiny.sd() if order is None else tiny.sd(cls=type("Two", (InTwo,), {"order": order}))
    for name, layer in two.unet.named_modules():
        if name.endswith("attn2"):
            layer.to_q.weight.data *= 200
    told = Guard(detectors=["text_noise_norm", E])
    run(two, PROMPTS[:1], told, images=2)

    def untold(*_):
        raise Unscored("rows tell nothing")

    monkeypatch.setattr(Prompts, "roles", untold)
    guard = Guard(detectors=["text_noise_norm", E])
    plain = run(two, PROMPTS[:1], images=2)
    assert torch.equal(run(two, PROMPTS[:1], guard, images=2), plain)
    for found, expected in zip(guard.report.findings, told.report.findings, strict=True):
        assert len(expected.scores) == 2 and found.scores == pytest.approx(expected.scores, rel=1e-4)


def test_rows_that_are_not_the_calls_have_a_reason():
    text, read = torch.randn(2, 5, 8), Reading({"attn2": SimpleNamespace(heads=1, scale=1.0)})
    read.begin(text)
    for where in "qk":
        read.keep(where, "attn2", torch.ones(6, 5, 8))  # each row repeated for three frames
    with pytest.raises(Unscored, match="the attention of attn2 cannot be read: it has 6 rows for 2 prompts"):
        read.take(slice(1, 2), text)
