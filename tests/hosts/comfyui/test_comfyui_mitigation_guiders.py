"""Mitigations under other guiders, and of prompts of several parts."""

import math
from dataclasses import replace

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG
from comfy_extras.nodes_perpneg import Guider_PerpNeg

from memguard_pack.memguard import mitigations
from memguard_pack.memguard.calibration import fit
from memguard_pack.memguard.mitigations.guidance_delay import Static
from memguard_pack.memguard.mitigations.padding import Padding
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import PROMPT, Scene, encode, made
from memguard_pack.tests.hosts.comfyui.test_comfyui_scenarios import limited
from tests.spread import spread

EVERY = [name for name in mitigations.available() if name != "local_guidance"]
DELAY = {"until": 100.0}


@pytest.fixture
def scene(monkeypatch):
    return lambda **settings: Scene(monkeypatch, **settings)


def without_prompt_above(model, timestep):
    """Return a model whose guidance is off above a timestep, by a function of ComfyUI's own."""
    sampling = model.model.model_sampling

    def post(state):
        off = float(sampling.timestep(state["sigma"][:1])) > timestep
        return state["uncond_denoised"] if off else state["denoised"]

    clone = model.clone()
    clone.set_model_sampler_post_cfg_function(post)
    return clone


# --- guidance and guiders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_delayed_guidance_is_the_prediction_without_the_prompt(name, scene):
    here = scene()
    expected = here.sample(without_prompt_above(here.model, 100), sampler=name, steps=5)
    for model in (here.watched(made("guidance_delay", **DELAY))[0], here.treated(made("guidance_delay", **DELAY))):
        seen = here.sample(model, sampler=name, steps=5)
        assert torch.allclose(seen, expected, atol=1e-4)
    assert not torch.allclose(expected, here.sample(sampler=name, steps=5), atol=1e-3)


def test_a_step_of_guidance_has_the_level_of_its_call(scene, monkeypatch):
    here, seen = scene(), []
    call = Static.__call__
    monkeypatch.setattr(
        Static, "__call__", lambda self, gap, step: (seen.append((step, gap)), call(self, gap, step))[1]
    )
    here.sample(here.treated(made("guidance_delay")), sampler="heun", steps=3)
    assert [step.index for step, _ in seen] == [0, 1, 1, 2, 2] and {step.count for step, _ in seen} == {3}
    x, sigma = tiny.start(here.model, here.latent())
    step, gap = seen[0]
    with torch.inference_mode():
        expected = tiny.predict(here.model, here.positive, x, sigma)
        gap_expected = tiny.gap(here.model, here.positive, here.negative, x, sigma)
    assert torch.allclose(step.cond, expected, atol=1e-5) and torch.allclose(gap, gap_expected, atol=1e-5)
    assert (step.scale, step.sigma) == (7.5, pytest.approx(sigma)) and step.timestep == pytest.approx(999, abs=1)


@pytest.mark.parametrize("nested", [True, False])
def test_two_prompts_are_guided_on_the_first(nested, scene):
    here = scene()
    other = encode(here.clip, "blue whale")

    class Without(Guider_DualCFG):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            conds, self.conds = self.conds, {**self.conds}
            kept = comfy.samplers.calc_cond_batch

            def calc(*args):
                out = kept(*args)
                return [out[0], out[1], out[0]] if len(out) == 3 else out

            comfy.samplers.calc_cond_batch = calc
            try:
                return super().predict_noise(x, timestep, model_options, seed)
            finally:
                comfy.samplers.calc_cond_batch, self.conds = kept, conds

    conds, cfg = (here.positive, other, here.negative), (5.0, 3.0, nested)
    expected = here.guide(Without, conds, cfg)
    watched, watcher = here.watched(made("guidance_delay", until=0.0))
    seen = here.guide(Guider_DualCFG, conds, cfg, watched)
    # the last call is at timestep 0 and guided as always
    report = watcher.report_of(seen)
    assert report.attempts[0].kept and not torch.equal(seen, here.guide(Guider_DualCFG, conds, cfg))
    assert torch.allclose(
        seen, expected, atol=0.05 * float((here.guide(Guider_DualCFG, conds, cfg) - expected).abs().max())
    )


def test_perp_neg_is_mitigated(scene):
    here = scene()
    conds, cfg = (here.positive, encode(here.clip, "blue whale"), here.negative), (5.0, 1.0)
    watched, watcher = here.watched([made("guidance_delay"), made("attention_scaling")])
    seen = here.guide(Guider_PerpNeg, conds, cfg, watched)
    report = watcher.report_of(seen)
    assert [attempt.kept for attempt in report.attempts] == [True, True] and report.error is None
    assert torch.isfinite(seen).all() and not torch.equal(seen, here.guide(Guider_PerpNeg, conds, cfg))


def test_the_negative_prompt_is_not_always_what_the_score_is_compared_with(scene, monkeypatch):
    here, began = scene(), []
    ugly = encode(here.clip, "ugly hands")
    monkeypatch.setattr(Padding, "_treat", lambda self, start, before: began.append(start) or before)
    for reference in ("empty", "negative"):
        model, watcher = here.watched(made("padding"), reference=reference)
        watcher.empty = here.negative
        here.sample(model, negative=ugly)
    for start in began:
        torch.testing.assert_close(start.negative.text.cpu(), ugly[0][0])
    assert torch.equal(began[1].reference.text, began[1].negative.text)
    torch.testing.assert_close(began[0].reference.text.cpu(), here.negative[0][0])


@pytest.mark.parametrize("how", ["cfg 1", "basic guider"])
def test_without_guidance_the_reason_is_named_and_edits_act(how, scene):
    here = scene()

    def run(model):
        if how == "cfg 1":
            return here.sample(model, cfg=1.0)
        return here.guide(Guider_Basic, (here.positive,), None, model)

    delayed = here.watched(made("guidance_delay"), reference="empty")
    delayed[1].empty = here.negative
    seen = run(delayed[0])
    report = delayed[1].report_of(seen)
    assert torch.equal(seen, run(None)) and report.findings[0].status == "ok"
    assert any(note.startswith("guidance was left alone: the sampler makes no prediction") for note in report.notes)
    edited = here.watched(made("attention_scaling"), reference="empty")
    edited[1].empty = here.negative
    seen = run(edited[0])
    assert not torch.equal(seen, run(None)) and edited[1].report_of(seen).attempts[0].scores


def test_a_guider_of_two_calls_says_that_guidance_needs_one(scene):
    class Two(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            outs = [
                comfy.samplers.calc_cond_batch(self.inner_model, [self.conds[role]], x, timestep, model_options)[0]
                for role in ("positive", "negative")
            ]
            return outs[1] + self.cfg * (outs[0] - outs[1])

    here = scene()
    conds = (here.positive, here.negative)
    plain = here.guide(Two, conds, (7.5,))
    watched, watcher = here.watched([made("guidance_delay"), made("attention_scaling")])
    seen = here.guide(Two, conds, (7.5,), watched)
    report = watcher.report_of(seen)
    assert any("predicted in two calls" in note for note in report.notes) and report.error is None
    expected = here.guide(Two, conds, (7.5,), here.treated(made("attention_scaling")))
    assert torch.allclose(seen, expected, atol=1e-5) and not torch.equal(seen, plain)


# --- prompts of several parts --------------------------------------------------------------------------------------


def test_of_several_prompts_in_a_batch_the_ordinary_one_keeps_its_bits(scene, monkeypatch):
    """As nodes that schedule prompts over a batch give them: a row of its own for each image."""
    here = scene()
    other = encode(here.clip, "blue whale")
    rows = [[torch.cat([here.positive[0][0], other[0][0], here.positive[0][0]]), here.positive[0][1]]]
    watch, watcher = here.watched(None, policy="warn")
    plain = here.sample(watch, positive=rows, image=here.latent(3))
    finding = watcher.report_of(plain).findings[0]
    assert finding.prompts == (0, 1, 0)
    first, second = sum(finding.rms[::2]) / 2, finding.rms[1]
    assert max(first, second) > 1.001 * min(first, second)
    memorized = [0, 2] if first > second else [1]
    known = watcher.guard.profile
    between = fit(spread(math.sqrt(first * second), 1e-5))
    for name in ("guidance_delay", "noise_adjustment", "prompt_optimization", "neuron_mask"):
        guarded, watcher = here.watched(made(name), profile=replace(known, distributions={"text_noise_norm": between}))
        seen = here.sample(guarded, positive=rows, image=here.latent(3))
        report = watcher.report_of(seen)
        assert report.error is None and report.attempts[0].kept, report.attempts
        changed = [image for image in range(3) if not torch.equal(seen[image], plain[image])]
        assert changed == memorized, name
        assert len(report.scores_before) == len(memorized)


@pytest.mark.parametrize("name", EVERY)
def test_a_prompt_of_two_areas(name, scene):
    here = scene(texts=(PROMPT, "blue whale"))
    second = encode(here.clip, "blue whale")
    halves = limited(here.positive, area=(8, 4, 0, 0), strength=1.0) + limited(second, area=(8, 4, 0, 4), strength=1.0)
    plain = here.sample(positive=halves)
    watched, watcher = here.watched(made(name))
    seen = here.sample(watched, positive=halves)
    report = watcher.report_of(seen)
    (attempt,) = report.attempts
    assert report.error is None and torch.isfinite(seen).all()
    exchanges = name in ("padding", "prompt_optimization", "random_tokens", "paraphrase")
    assert torch.equal(plain, seen) == exchanges
    reason = "the prompt is combined of 2 parts, and only a prompt of one part can be exchanged"
    assert (reason in " ".join(attempt.changes)) == exchanges


def test_without_clip_the_report_says_what_to_connect(scene):
    here = scene()
    watched, watcher = here.watched([made("padding"), made("attention_scaling")], clip=False)
    report = watcher.report_of(here.sample(watched))
    assert "the prompt's tokens are not known" in report.attempts[1].changes[0]
    assert any(note.startswith("clip is not connected") for note in report.notes)


def test_a_text_that_is_not_in_the_workflow_is_not_guessed(scene):
    here = scene(texts=("quite another prompt",))
    watched, watcher = here.watched(made("attention_scaling"))
    seen = here.sample(watched)
    assert torch.equal(seen, here.sample())
    assert "the prompt's tokens are not known" in watcher.report_of(seen).attempts[0].changes[0]


def test_padding_is_that_of_the_tokenizer(scene, monkeypatch):
    here = scene()
    expected = here.clip.tokenize(PROMPT)["l"][0]
    swapped = [(0, weight) if i > 7 else (token, weight) for i, (token, weight, *_) in enumerate(expected)]
    with torch.inference_mode():
        vectors = here.clip.encode_from_tokens({"l": [swapped]})["cond"].clone()
        vectors[:, 7] = 0  # EOS
    changed = [[vectors, here.positive[0][1]]]
    assert torch.allclose(here.sample(here.treated(made("padding"))), here.sample(positive=changed), atol=1e-5)
    assert here.clip.tokenizer.clip_l.pad_token == 49407
