"""Several passes of one prompt id: a second pass takes over the first one's verdict and treatment, or says why not."""

import comfy.samplers
import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from comfy_extras.nodes_model_merging import ModelMergeSimple

from memguard_pack.memguard.hosts.comfyui import graph, screen
from memguard_pack.memguard.hosts.comfyui.continuing import UNGUARDED
from memguard_pack.memguard.passes import NOTHING, UNTREATED
from memguard_pack.memguard.wording import message
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import Scene, made

STEPS = {"steps": 6}
HALF = {"steps": 6, "denoise": 0.5}


@pytest.fixture
def scene(monkeypatch):
    return lambda **settings: Scene(monkeypatch, **settings)


def sampled(here, model, image, node="1", prompt_id="job", **more):
    """Return the latent that a node of a prompt id makes of an image."""
    with CurrentNodeContext(prompt_id, node, 0):
        return here.sample(model, image=image, **more)


def upscaled(latent, side=12):
    """Return a latent of another size: nothing but the prompt tells where it comes from."""
    return torch.nn.functional.interpolate(latent.clone(), size=(side, side), mode="bilinear")


@pytest.mark.parametrize("name", ["padding", "attention_scaling", "neuron_mask", "spike_attenuation", "random_tokens"])
def test_a_second_pass_is_treated_like_the_first(name, scene, rows):
    here = scene()
    watched, watcher = here.watched(made(name))
    first = sampled(here, watched, here.latent(), **STEPS)
    assert watcher.report_of(first).attempts[0].kept
    image = upscaled(first)
    with rows(here.model) as free:
        plain = sampled(here, here.model, image, node="2", **HALF)
    with rows(here.model) as spent:
        second = sampled(here, watched, image, node="2", **HALF)
    report = watcher.report_of(second)
    assert report.error is None and not torch.equal(plain, second)
    treated = sampled(here, here.treated(made(name)), image, node="2", **HALF)
    assert (second - treated).abs().max() < 1e-3 * (second - plain).abs().max()
    (attempt,) = report.attempts
    assert attempt.kept and attempt.mitigation.endswith(", as in the first pass") and attempt.scores
    assert report.verdict == watcher.report_of(first).verdict and report.findings[-1].carried
    assert "mitigated by" in message(report) and "of an earlier pass" in message(report)
    assert sum(spent) - sum(free) == report.extra_rows


def test_the_latent_itself_tells_its_run_also_with_another_prompt(scene):
    here = scene()
    watched, watcher = here.watched(made("padding"))
    first = sampled(here, watched, here.latent(), **STEPS)
    other = [[here.positive[0][0] + 1e-3, here.positive[0][1]]]
    second = sampled(here, watched, first, node="2", positive=other, prompt_id="another", **HALF)
    assert watcher.report_of(second).findings[-1].carried
    # an unrelated picture under another prompt: neither
    third = sampled(here, watched, upscaled(first), node="2", positive=other, prompt_id="a third", **HALF)
    assert watcher.report_of(third).attempts == () and watcher.report_of(third).verdict == "unknown"


def test_what_starts_from_noise_alone_takes_over_no_verdict(scene):
    """The same prompt again, which has no score of its own this time: another run's is not said to be its."""
    here = scene()
    watched, watcher = here.watched(made("padding"))
    assert watcher.report_of(sampled(here, watched, here.latent(), **STEPS)).verdict == "memorized"
    for prompt_id in ("job", "another"):
        again = sampled(here, watched, here.latent(), node="2", prompt_id=prompt_id, cfg=1.0, **STEPS)
        report = watcher.report_of(again)
        assert report.verdict == "unknown" and report.attempts == () and len(report.findings) == 1


def test_a_picture_that_comes_in_beside_an_empty_latent_is_gone_on_with(scene, monkeypatch):
    """SD_4XUpscale_Conditioning and InstructPixToPixConditioning give the sampler zeros; a size alone is no picture."""
    here = scene()
    nodes = {
        "1": {"class_type": "KSampler", "inputs": {"latent_image": ["0", 0]}},
        "2": {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0]}},
        "3": {"class_type": "SD_4XUpscale_Conditioning", "inputs": {"images": ["2", 0], "positive": ["8", 0]}},
        "4": {"class_type": "KSampler", "inputs": {"latent_image": ["3", 2], "positive": ["3", 0]}},
        "5": {"class_type": "GetImageSize", "inputs": {"image": ["2", 0]}},
        "6": {"class_type": "EmptyLatentImage", "inputs": {"width": ["5", 0], "height": ["5", 1]}},
        "7": {"class_type": "KSampler", "inputs": {"latent_image": ["6", 0], "positive": ["8", 0]}},
    }
    monkeypatch.setattr(screen, "running_prompt", lambda prompt_id: nodes)
    watched, watcher = here.watched(made("padding"))
    sampled(here, watched, here.latent(), **STEPS)
    empty = torch.zeros_like(upscaled(here.latent(), 12))
    for node, carried in (("4", True), ("7", False)):
        report = watcher.report_of(sampled(here, watched, empty, node=node, cfg=1.0, **STEPS))
        assert bool(report.findings[-1].carried) == carried, node


def test_a_merge_is_watched_by_its_first_model_s_guard(scene):
    here = scene()
    watched, watcher = here.watched(made("padding"))
    for models, seen in (((here.model, watched), False), ((watched, here.model), True)):
        watcher.guard.report = None
        (merged,) = ModelMergeSimple().merge(*models, 0.5)
        sampled(here, merged, here.latent(), **STEPS)
        assert (watcher.guard.report is not None) == seen


def test_the_graph_tells_whose_picture_was_decoded_and_encoded_again(scene, monkeypatch):
    here = scene()
    nodes = {
        "1": {"class_type": "KSampler", "inputs": {"latent_image": ["0", 0]}},
        "2": {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0], "vae": ["9", 2]}},
        "3": {"class_type": "VAEEncode", "inputs": {"pixels": ["2", 0], "vae": ["9", 2]}},
        "4": {"class_type": "KSampler", "inputs": {"latent_image": ["3", 0], "positive": ["8", 0]}},
        "5": {"class_type": "KSampler", "inputs": {"latent_image": ["0", 0], "positive": ["1", 0]}},
    }
    monkeypatch.setattr(screen, "running_prompt", lambda prompt_id: nodes)
    assert graph.painted_before(nodes, "4") == {"1", "2", "3", "9", "0"} and graph.painted_before(nodes, "5") == {"0"}
    watched, watcher = here.watched(made("padding"))
    first = sampled(here, watched, here.latent(), **STEPS)
    other = [[here.positive[0][0] + 1e-3, here.positive[0][1]]]
    second = sampled(here, watched, upscaled(first), node="4", positive=other, **HALF)
    assert watcher.report_of(second).findings[-1].carried
    apart = sampled(here, watched, upscaled(first, 10), node="5", positive=other, **HALF)
    assert watcher.report_of(apart).verdict == "unknown"


def test_noise_cannot_be_given_to_a_second_pass_and_the_report_says_so(scene):
    here = scene()
    watched, watcher = here.watched(made("noise_adjustment"))
    first = sampled(here, watched, here.latent(), **STEPS)
    plain = sampled(here, here.model, upscaled(first), node="2", **HALF)
    second = sampled(here, watched, upscaled(first), node="2", **HALF)
    report = watcher.report_of(second)
    assert torch.equal(plain, second) and report.attempts[0].changes[-1] == NOTHING
    assert "could not be mitigated, the picture is the unmitigated one" in message(report)
    assert report.verdict == watcher.report_of(first).verdict


def test_an_optimised_prompt_is_used_again(scene, rows):
    here = scene()
    watched, watcher = here.watched(made("prompt_optimization"))
    first = sampled(here, watched, here.latent(), **STEPS)
    image = upscaled(first)
    plain = sampled(here, here.model, image, node="2", **HALF)
    with rows(here.model) as spent:
        second = sampled(here, watched, image, node="2", **HALF)
    report = watcher.report_of(second)
    assert not torch.equal(plain, second) and report.attempts[0].changes == ("the first pass's optimised prompt",)
    assert report.extra_rows == 2 and sum(spent) == 2 * 6 + 2  # the first step, twice


def test_a_pass_at_cfg_1_has_no_score_and_is_treated_all_the_same(scene, rows):
    here = scene()
    watched, watcher = here.watched(made("attention_scaling"))
    first = sampled(here, watched, here.latent(), **STEPS)
    image = upscaled(first)
    with rows(here.model) as free:
        plain = sampled(here, here.model, image, node="2", cfg=1.0, **HALF)
    with rows(here.model) as spent:
        second = sampled(here, watched, image, node="2", cfg=1.0, **HALF)
    report = watcher.report_of(second)
    treated = sampled(here, here.treated(made("attention_scaling")), image, node="2", cfg=1.0, **HALF)
    assert not torch.equal(plain, second) and torch.allclose(second, treated, atol=1e-5)
    assert report.attempts[0].kept and report.attempts[0].scores == ()
    assert sum(spent) - sum(free) == report.extra_rows == 1


@pytest.mark.parametrize("policy", ["observe", "warn"])
def test_without_mitigation_the_verdict_is_taken_over_and_no_pixel_changes(policy, scene, rows):
    here = scene()
    watched, watcher = here.watched(None, policy=policy)
    first = sampled(here, watched, here.latent(), **STEPS)
    with rows(here.model) as free:
        plain = sampled(here, here.model, upscaled(first), node="2", **HALF)
    with rows(here.model) as spent:
        second = sampled(here, watched, upscaled(first), node="2", **HALF)
    report = watcher.report_of(second)
    assert torch.equal(plain, second) and spent == free
    assert report.verdict == watcher.report_of(first).verdict != "unknown" and report.attempts == ()
    assert "that is the verdict of an earlier pass" in message(report)


def test_an_ordinary_first_pass_leaves_the_second_alone(scene):
    here = scene()
    watched, watcher = here.watched(made("padding"), rms=10.0)
    first = sampled(here, watched, here.latent(), **STEPS)
    plain = sampled(here, here.model, upscaled(first), node="2", **HALF)
    second = sampled(here, watched, upscaled(first), node="2", **HALF)
    report = watcher.report_of(second)
    assert torch.equal(plain, second) and report.verdict == "ordinary" and report.attempts == ()


def test_a_mitigation_that_was_taken_back_is_not_repeated(scene):
    here = scene(keep=False)
    watched, watcher = here.watched(made("padding"))
    first = sampled(here, watched, here.latent(), **STEPS)
    assert not watcher.report_of(first).attempts[0].kept
    plain = sampled(here, here.model, upscaled(first), node="2", **HALF)
    second = sampled(here, watched, upscaled(first), node="2", **HALF)
    assert torch.equal(plain, second) and watcher.report_of(second).attempts[0].changes == (UNTREATED,)


def test_a_run_that_goes_on_with_the_rest_of_the_steps_is_treated(scene):
    here = scene()
    watched, watcher = here.watched(made("padding"))
    half = sampled(here, watched, here.latent(), last_step=3, force_full_denoise=False, **STEPS)
    rest = {"start_step": 3, "disable_noise": True, **STEPS}
    plain = sampled(here, here.model, half, node="2", **rest)
    second = sampled(here, watched, half, node="2", **rest)
    assert not torch.equal(plain, second) and watcher.report_of(second).attempts[0].kept


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux"])
def test_other_models_say_what_was_done(kind, scene):
    here = scene(kind=kind)
    watched, watcher = here.watched(made("random_tokens"))
    first = sampled(here, watched, here.latent(), **STEPS)
    assert watcher.report_of(first).attempts[0].kept
    second = sampled(here, watched, tiny.latent(kind, side=12) + first.mean(), node="2", **HALF)
    report = watcher.report_of(second)
    assert report.error is None and report.attempts[0].kept and report.findings[-1].carried


def test_a_guider_of_its_own_is_treated_too(scene):
    here = scene()
    watched, watcher = here.watched(made("padding"))
    first = sampled(here, watched, here.latent(), **STEPS)
    sigmas = comfy.samplers.calculate_sigmas(here.model.get_model_object("model_sampling"), "normal", 6)[3:]
    with CurrentNodeContext("job", "2", 0), torch.inference_mode():
        guider = comfy.samplers.CFGGuider(watched)
        guider.set_conds(here.positive, here.negative)
        guider.set_cfg(7.5)
        second = tiny.guide(guider, upscaled(first), sigmas=sigmas)
    assert watcher.report_of(second).attempts[0].kept


def test_a_second_sampler_that_nobody_watches_is_named(scene, monkeypatch):
    here = scene()
    first = {"latent_image": ["0", 0], "model": ["g", 0], "positive": ["p", 0], "sampler_name": "euler"}
    nodes = {
        "g": {"class_type": "MemGuard", "inputs": {"model": ["m", 0]}},
        "1": {"class_type": "KSampler", "inputs": first},
        "2": {"class_type": "LatentUpscale", "inputs": {"samples": ["1", 0]}},
        "3": {"class_type": "KSampler", "inputs": {**first, "latent_image": ["2", 0]}},
        "4": {"class_type": "KSampler", "inputs": {**first, "latent_image": ["2", 0], "model": ["m", 0]}},
        "5": {"class_type": "KSampler", "inputs": {**first, "model": ["m", 0]}},
        "6": {"class_type": "SaveLatent", "inputs": {"samples": ["1", 0]}},
    }
    assert graph.unguarded_after(nodes, "1") == ["4"]
    monkeypatch.setattr(screen, "running_prompt", lambda prompt_id: nodes)
    for rms, named in ((1e-7, True), (10.0, False)):
        watched, watcher = here.watched(None, policy="observe", rms=rms)
        report = watcher.report_of(sampled(here, watched, here.latent(), **STEPS))
        assert (UNGUARDED.format("4") in report.notes) is named


def test_an_empty_prompt_is_told_what_it_is(scene):
    here = scene()
    watched, watcher = here.watched(None, policy="observe")
    report = watcher.report_of(sampled(here, watched, here.latent(), positive=here.negative))
    assert "they are equal" in message(report) and "cfg" not in message(report)
