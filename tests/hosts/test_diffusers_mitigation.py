"""Mitigations in diffusers pipelines: identities, numbers against plain computations, and nothing left behind."""

import math
import statistics
from dataclasses import replace

import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.models.attention_processor import AttnProcessor

import memguard
from memguard import Guard
from memguard.calibration import fit
from memguard.hosts.diffusers.attention import cross_layers
from memguard.hosts.diffusers.hooks import Trouble
from memguard.hosts.diffusers.rows import Prompts
from memguard.hosts.diffusers.steering import Steering
from memguard.mitigations import available, get
from memguard.records import NeuronSet
from memguard.sampling import Unwatched
from tests.hosts import tiny
from tests.hosts.contract import profile
from tests.hosts.test_diffusers import Diffusers, generate, noise_gap, seeded
from tests.spread import spread

PROMPT, OTHER = "a red fox", "a blue house"
NEURONS = NeuronSet({"mid_block.attentions.0.transformer_blocks.0.attn2": (0, 5, 9)})
NEEDS = {
    "neuron_mask": {"neurons": NEURONS},
    "paraphrase": {"text": "a blue house", "lower": 1e-6, "upper": 1e-5},
    "noise_adjustment": {"rounds": 1},
    "prompt_optimization": {"iterations": 2},
}
# what a mitigation cannot do, on the tiny pipelines: joint attention, T5's columns
LEFT_OUT = {
    "sd3": {"attention_scaling", "spike_attenuation", "neuron_mask", "guard", "padding"},
    "flux": {"attention_scaling", "spike_attenuation", "neuron_mask", "guard", "padding"},
}


def made(name, **settings):
    return get(name, **NEEDS.get(name, {}) | settings)


def treated(pipe, mitigation, **changes):
    with mitigation.attach(pipe):
        return generate(pipe, **{"prompt": PROMPT} | changes)


def flagging(pipe, **changes):
    """A profile under which the prompt looks memorized."""
    guard = Guard()
    generate(pipe, guard, **{"prompt": PROMPT} | changes)
    return profile(guard)


@pytest.fixture(scope="module")
def sd():
    return tiny.sd()


@pytest.mark.parametrize("name", available())
def test_strength_0_is_the_plain_picture(sd, name):
    assert torch.equal(treated(sd, made(name, strength=0)), generate(sd, prompt=PROMPT))


@pytest.mark.parametrize("name", available())
def test_every_mitigation_changes_the_picture_and_leaves_nothing_behind(name):
    host = Diffusers()
    before, plain = host.hooks(), generate(host.pipe, prompt=PROMPT)
    changed = treated(host.pipe, made(name))
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, plain)
    assert host.hooks() == before
    assert not [module for module in host.pipe.unet.modules() if "forward" in vars(module)]
    assert torch.equal(generate(host.pipe, prompt=PROMPT), plain)


@pytest.mark.parametrize("name", [name for name in available() if name != "local_guidance"])  # it uses the profile
def test_gated_and_ungated_give_the_same_picture(sd, name, monkeypatch):
    monkeypatch.setattr("memguard.loop.helped", lambda *_: True)  # random weights: nothing has to help
    guard = Guard(policy="mitigate", mitigation=made(name), profile=flagging(sd))
    gated = generate(sd, guard, prompt=PROMPT)
    assert guard.report.error is None
    assert [attempt.kept for attempt in guard.report.attempts] == [True]
    torch.testing.assert_close(gated, treated(sd, made(name)), rtol=1e-3, atol=1e-3)
    assert not torch.equal(gated, generate(sd, prompt=PROMPT))


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
@pytest.mark.parametrize("name", available())
def test_other_families_work_or_say_why_not(kind, name, caplog):
    pipe = getattr(tiny, kind)()
    given = {"true_cfg_scale": 4.0, "negative_prompt": "a house", "max_sequence_length": 16} if kind == "flux" else {}
    size = {"height": 16, "width": 16}
    plain = generate(pipe, prompt=PROMPT, **given, **size)
    assert torch.equal(treated(pipe, made(name, strength=0), **given, **size), plain)
    same = torch.equal(treated(pipe, made(name), **given, **size), plain)
    assert same == (name in LEFT_OUT.get(kind, ()))
    assert caplog.messages or not same


class Explicit:
    """Cross-attention by its formula, with BOS scaled and padding masked on the prompt's rows."""

    def __init__(self, words: int, scale: float):
        self.words, self.scale = words, scale

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            projection(values).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection, values in ((attn.to_q, hidden_states), (attn.to_k, text), (attn.to_v, text))
        )
        logits = q @ k.transpose(-1, -2) * attn.scale
        if encoder_hidden_states is not None:
            prompts = slice(len(logits) // 2, None)  # diffusers: the prompt's rows come second
            logits[prompts, ..., 0] *= self.scale
            logits[prompts, ..., self.words + 2 :] = -torch.inf
        return attn.to_out[0]((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_images_per_prompt": 3, "height": 64, "width": 48},
        {"negative_prompt": "ugly"},
        {"generator": [seeded(1), seeded(2)], "num_images_per_prompt": 2},
    ],
)
def test_attention_scaling_is_the_formula(sd, changes):
    found = treated(sd, get("attention_scaling", bos_scale=1.5), **{"generator": seeded()} | changes)
    if "generator" in changes:
        changes = changes | {"generator": [seeded(1), seeded(2)]}
    before = sd.unet.attn_processors
    sd.unet.set_attn_processor(Explicit(words=3, scale=1.5))
    try:
        expected = generate(sd, prompt=PROMPT, **changes)
    finally:
        sd.unet.set_attn_processor(before)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_prompts_of_different_length_in_one_batch(sd):
    prompts = [PROMPT, "a cat on the roof", "house"]
    together = treated(sd, get("attention_scaling"), prompt=prompts, generator=[seeded(i) for i in range(3)])
    for row, prompt in enumerate(prompts):
        alone = treated(sd, get("attention_scaling"), prompt=prompt, generator=seeded(row))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backend", ["plain", "sliced"])
@pytest.mark.parametrize("name", ["attention_scaling", "spike_attenuation", "neuron_mask"])
def test_edits_go_through_the_pipelines_own_processors(backend, name):
    pipe = tiny.sd()
    expected = treated(pipe, made(name))
    if backend == "sliced":
        pipe.enable_attention_slicing(1)
    else:
        pipe.unet.set_attn_processor(AttnProcessor())
    torch.testing.assert_close(treated(pipe, made(name)), expected, rtol=1e-3, atol=1e-4)


def test_neuron_mask_silences_columns_of_the_values(sd):
    layer = cross_layers(sd.unet)["mid_block.attentions.0.transformer_blocks.0.attn2"]

    def silence(module, inputs, output):
        output = output.clone()
        output[len(output) // 2 :, :, [0, 5, 9]] = 0
        return output

    found = treated(sd, made("neuron_mask"))
    handle = layer.to_v.register_forward_hook(silence)
    expected = generate(sd, prompt=PROMPT)
    handle.remove()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_delayed_guidance_is_no_guidance_at_first(sd):
    found = treated(sd, get("guidance_delay", until=1000.0))
    torch.testing.assert_close(found, generate(sd, prompt=PROMPT))
    never = treated(sd, get("guidance_delay", until=0.0))
    torch.testing.assert_close(never, generate(sd, prompt="", guidance_scale=1.0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("plan", [None, EulerDiscreteScheduler])
def test_the_run_starts_from_the_adjusted_noise(plan):
    pipe = tiny.sd(None if plan is None else tiny.scheduler(plan))
    seen = []
    handle = pipe.unet.register_forward_hook(
        lambda m, a, k, out: seen.append(a[0] if a else k["sample"]), with_kwargs=True
    )
    given = torch.randn(1, 4, 8, 8, generator=seeded())
    kept = given.clone()
    found = treated(pipe, get("noise_adjustment", rounds=1, until=1000.0), latents=given)
    handle.remove()
    assert torch.equal(given, kept)  # the user's own tensor
    first = next(x for x in seen if len(x) == 2)[:1]
    sigma = float(getattr(pipe.scheduler, "sigmas", torch.zeros(1))[0])
    factor = (1 + sigma**2) ** 0.5 / float(pipe.scheduler.init_noise_sigma)  # of scale_model_input and of the pipeline
    torch.testing.assert_close(found, generate(pipe, prompt=PROMPT, latents=first * factor), rtol=1e-3, atol=1e-3)


class TestGate:
    def test_an_ordinary_prompt_is_untouched(self, sd):
        guard = Guard(policy="mitigate")
        assert torch.equal(generate(sd, guard, prompt=PROMPT), generate(sd, prompt=PROMPT))
        assert guard.report.extra_rows == 0
        assert guard.report.attempts == ()

    def test_auto_escalates_and_tells_what_it_did(self, sd):
        host = Diffusers()
        before = host.rows()
        guard = Guard(policy="mitigate", profile=flagging(host.pipe))
        spent = host.rows()
        generate(host.pipe, guard, prompt=PROMPT)
        report = guard.report
        assert [attempt.mitigation for attempt in report.attempts] == [
            "Padding + Guidance delay",
            "Noise adjustment",
            "Prompt optimisation",
        ]
        assert before == 0
        assert report.extra_rows == host.rows() - spent - 8  # counted by the code: all rows but the run's own
        assert report.extra_rows == sum(attempt.extra_rows for attempt in report.attempts)
        assert report.scores_before == report.findings[0].scores

    def test_the_score_after_is_that_of_the_treated_first_step(self, sd, monkeypatch):
        monkeypatch.setattr("memguard.loop.helped", lambda *_: True)
        seen = []
        handle = sd.unet.register_forward_hook(lambda m, a, k, out: seen.append(out[0]), with_kwargs=True)
        guard = Guard(policy="mitigate", mitigation="attention_scaling", profile=flagging(sd))
        seen.clear()
        generate(sd, guard, prompt=PROMPT)
        handle.remove()
        uncond, cond = seen[1].chunk(2)  # the first call again
        assert guard.report.scores_after == (pytest.approx(float((cond - uncond).norm()), rel=1e-5),)

    @pytest.mark.parametrize("name", [name for name in available() if name != "local_guidance"])
    def test_of_several_prompts_the_ordinary_one_keeps_its_bits(self, sd, name, monkeypatch):
        monkeypatch.setattr("memguard.loop.helped", lambda *_: True)
        settings = {"prompt": [PROMPT, OTHER, PROMPT], "num_images_per_prompt": 2, "generator": seeded()}
        watch = Guard()
        plain = generate(sd, watch, **settings)
        finding = watch.report.findings[0]
        assert finding.prompts == (0, 0, 1, 1, 0, 0)
        high, low = statistics.fmean(finding.rms[:2] + finding.rms[4:]), statistics.fmean(finding.rms[2:4])
        assert low < high
        between = fit(spread(math.sqrt(low * high), 1e-4))
        found = replace(profile(watch), distributions={"text_noise_norm": between})
        guard = Guard(policy="mitigate", mitigation=made(name), profile=found)
        gated = generate(sd, guard, **settings | {"generator": seeded()})
        assert guard.report.error is None
        assert [attempt.kept for attempt in guard.report.attempts] == [True]
        assert torch.equal(gated[2:4], plain[2:4])
        assert not any(torch.equal(gated[image], plain[image]) for image in (0, 1, 4, 5))
        assert len(guard.report.scores_before) == 4

    def test_guidance_off_is_a_reason_and_the_picture_is_the_plain_one(self, sd):
        guard = Guard(policy="mitigate")
        plain = generate(sd, prompt=PROMPT, guidance_scale=1.0)
        assert torch.equal(generate(sd, guard, prompt=PROMPT, guidance_scale=1.0), plain)
        assert guard.report.findings[0].status.startswith("cfg is 1")

    @pytest.mark.parametrize("cfg", [1.0, 7.5])
    def test_compared_with_the_empty_prompt(self, sd, cfg, monkeypatch):
        """At guidance 1 as well: there is no guidance to change, and everything else works."""
        monkeypatch.setattr("memguard.loop.helped", lambda *_: True)
        given = {"prompt": PROMPT, "guidance_scale": cfg, "negative_prompt": "ugly"}
        plain = Guard(reference="empty")
        generate(sd, plain, **given)
        guard = Guard(
            policy="mitigate", mitigation=made("prompt_optimization"), profile=profile(plain), reference="empty"
        )
        found = generate(sd, guard, **given)
        (attempt,) = guard.report.attempts
        assert attempt.kept
        assert guard.report.scores_before == plain.report.findings[0].scores
        assert f"noise gap {plain.report.findings[0].scores[0]:.3g} to {attempt.scores[0]:.3g}" in attempt.changes[0]
        assert not torch.equal(found, generate(sd, **given))

    @pytest.mark.parametrize("error", [RuntimeError("inside"), ZeroDivisionError("inside"), KeyError("inside")])
    def test_an_error_of_ours_does_not_cost_the_picture(self, sd, monkeypatch, error):
        calls = []

        def broken(*_):
            calls.append(1)
            raise error

        guard = Guard(policy="mitigate", profile=flagging(sd))
        plain = generate(sd, prompt=PROMPT)
        monkeypatch.setattr("memguard.sampling.mitigate", broken)
        assert torch.equal(generate(sd, guard, prompt=PROMPT), plain)
        assert "inside" in guard.report.error
        assert len(calls) == 1

    def test_a_set_for_another_model_leaves_the_plain_picture_and_names_both(self, sd):
        wrong = NeuronSet(NEURONS.indices, model="00000000cafe0001")
        guard = Guard(policy="mitigate", mitigation=get("neuron_mask", neurons=wrong), profile=flagging(sd))
        assert torch.equal(generate(sd, guard, prompt=PROMPT), generate(sd, prompt=PROMPT))
        (line,) = guard.report.attempts[0].changes
        assert "00000000cafe0001" in line and guard.report.model in line

    def test_weights_without_a_gradient_leave_the_plain_picture_and_a_remedy(self):
        pipe = tiny.sd()
        pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        guard = Guard(policy="mitigate", mitigation="prompt_optimization", profile=flagging(pipe))
        assert torch.equal(generate(pipe, guard, prompt=PROMPT), generate(pipe, prompt=PROMPT))
        assert "these weights have no gradient" in guard.report.attempts[0].changes[0]
        assert "use one without gradients" in guard.report.attempts[0].changes[0]

    def test_not_a_number_leaves_a_reason(self):
        pipe = tiny.sd()
        profiled, calls = flagging(pipe), []

        def broken(module, inputs, output):
            calls.append(1)
            return output * math.nan if len(calls) in (2, 3) else None

        pipe.unet.mid_block.register_forward_hook(broken)
        guard = Guard(policy="mitigate", mitigation="prompt_optimization", profile=profiled)
        found = generate(pipe, guard, prompt=PROMPT)
        assert torch.isfinite(found).all()
        assert "run the model in float32" in guard.report.attempts[0].changes[0]

    def test_an_exception_in_the_run_leaves_nothing_behind(self):
        host = Diffusers()
        profiled = flagging(host.pipe)
        before = host.hooks()
        host.pipe.unet.mid_block.register_forward_hook(_fail_at(4))
        with pytest.raises(RuntimeError, match="the denoiser broke"):
            generate(
                host.pipe, Guard(policy="mitigate", profile=profiled, mitigation="attention_scaling"), prompt=PROMPT
            )
        assert host.hooks() == before
        assert not [module for module in host.pipe.unet.modules() if "forward" in vars(module)]

    def test_a_model_compiled_in_place(self, monkeypatch):
        monkeypatch.setattr("memguard.loop.helped", lambda *_: True)
        pipe = tiny.sd()
        flagged = flagging(pipe)
        expected = generate(
            pipe, Guard(policy="mitigate", mitigation="attention_scaling", profile=flagged), prompt=PROMPT
        )
        plain = generate(pipe, prompt=PROMPT)
        pipe.unet.compile(backend="eager")
        torch.testing.assert_close(generate(pipe, Guard(policy="mitigate"), prompt=PROMPT), plain)
        found = generate(pipe, Guard(policy="mitigate", mitigation="attention_scaling", profile=flagged), prompt=PROMPT)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(generate(pipe, prompt=PROMPT), plain)

    def test_half_precision(self):
        pipe = tiny.sd().to(torch.float16)
        plain = generate(pipe, prompt=PROMPT)
        guard = Guard(policy="mitigate", profile=flagging(pipe))
        found = generate(pipe, guard, prompt=PROMPT)
        assert torch.isfinite(found).all()
        assert guard.report.error is None
        assert torch.equal(generate(pipe, Guard(policy="mitigate"), prompt=PROMPT), plain)


def _fail_at(number):
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) == number:
            raise RuntimeError("the denoiser broke")

    return hook


class TestOptimizePrompt:
    @pytest.mark.parametrize("images", [1, 3])
    @pytest.mark.parametrize("parity", [None, "official"])
    def test_against_an_adamw_of_its_own(self, sd, images, parity):
        found = memguard.mitigations.optimize_prompt(sd, PROMPT, images, seed=3, iterations=3, parity=parity)
        sd.scheduler.set_timesteps(50)
        t = sd.scheduler.timesteps[0]
        x = torch.randn(images, 4, 8, 8, generator=seeded())
        cond, uncond = sd.encode_prompt([PROMPT], "cpu", 1, True, [""])
        text = cond.detach().clone().requires_grad_(True)
        adamw = torch.optim.AdamW([text], lr=0.05)
        for _ in range(3):
            both = [
                sd.unet(x, t, encoder_hidden_states=c.expand(images, -1, -1)).sample for c in (text, uncond.detach())
            ]
            norms = (both[0] - both[1]).flatten(1).norm(dim=1)
            loss = norms.norm() if parity else norms.mean()
            adamw.zero_grad()
            loss.backward()
            text.grad[:, 0] = 0
            adamw.step()
        expected = text.detach()
        if parity is None:
            expected[:, 0] = cond[:, 0]
        assert found.shape == (1, 77, tiny.WIDTH)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_the_sampler_measures_the_loss(self, sd):
        found = memguard.mitigations.optimize_prompt(sd, PROMPT, 2, seed=3, iterations=4, num_inference_steps=4)
        before = noise_gap(sd, PROMPT, images=2).flatten(1).norm(dim=1).mean()
        _, empty = sd.encode_prompt([PROMPT], "cpu", 1, True, [""])
        guard = Guard()
        with guard.attach(sd):
            sd(
                prompt_embeds=found,
                negative_prompt_embeds=empty,
                num_images_per_prompt=2,
                num_inference_steps=4,
                generator=seeded(),
                output_type="latent",
            )
        scores = guard.report.findings[0].scores
        reached = memguard.mitigations.optimize_prompt(
            sd, PROMPT, 2, seed=3, iterations=4, num_inference_steps=4, target=sum(scores) / 2 + 1e-6
        )
        torch.testing.assert_close(found, reached)
        assert sum(scores) / 2 < float(before)

    def test_a_target_stops_it(self, sd):
        at_once = memguard.mitigations.optimize_prompt(sd, PROMPT, seed=3, target=1e6)
        cond, _ = sd.encode_prompt([PROMPT], "cpu", 1, True, [""])
        assert torch.equal(at_once, cond)

    @pytest.mark.parametrize(
        ("settings", "line"),
        [
            ({"guidance_scale": 1.0}, "guidance is off"),
            ({"lr": 0.0}, "lr is 0.0; give a learning rate above 0"),
            ({"height": 60}, "give multiples of 8"),
        ],
    )
    def test_bad_input_gets_one_line(self, sd, settings, line):
        with pytest.raises(ValueError, match=line):
            memguard.mitigations.optimize_prompt(sd, PROMPT, **settings)


@pytest.mark.parametrize("inner", ["guard", "mitigation"])
@pytest.mark.parametrize(
    "name", ["padding", "noise_adjustment", "guidance_delay", "prompt_optimization", "attention_scaling"]
)
def test_a_guard_scores_what_a_treated_run_predicts(sd, inner, name):
    guard, mitigation, plain, seen = Guard(), made(name), Guard(), []
    generate(sd, plain, prompt=PROMPT)
    handle = sd.unet.register_forward_hook(lambda m, a, k, out: seen.append(out[0]), with_kwargs=True, prepend=True)
    order = (guard, mitigation) if inner == "mitigation" else (mitigation, guard)
    with order[0].attach(sd), order[1].attach(sd):
        found = generate(sd, prompt=PROMPT)
    handle.remove()
    uncond, cond = next(out for out in seen if len(out) == 2).chunk(2)
    finding = guard.report.findings[0]
    assert finding.status == "ok"
    assert finding.scores == (pytest.approx(float((cond - uncond).norm()), rel=1e-5),)
    assert (finding.scores == plain.report.findings[0].scores) == (name == "guidance_delay")
    assert torch.equal(found, treated(sd, mitigation))


def test_guidance_that_comes_too_late_is_told(sd, caplog):
    found = treated(sd, get("guidance_delay", until=1000.0))
    assert torch.equal(found, generate(sd, prompt=PROMPT))
    assert caplog.messages == ["guidance scale 0 until timestep 1000: never took effect in this run"]


def test_the_guidance_scale_of_a_pipeline_that_tells_none_is_that_of_its_call(sd):
    class Silent:  # as PixArt is
        pass

    assert Steering(Silent(), sd.unet, Prompts(), Unwatched(), Trouble(), 5.0).guidance == 5.0
    Silent.guidance_scale = 3.0
    assert Steering(Silent(), sd.unet, Prompts(), Unwatched(), Trouble(), 5.0).guidance == 3.0
