"""ComfyUI's split over several devices: prompt and negative prompt are predicted in threads, by copies of the network.

Two devices are stood in for by the CPU under two names; threads, copies and the split are ComfyUI's own.
"""

import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_custom_sampler import Guider_DualCFG

pytest.importorskip("comfy.multigpu", reason="this ComfyUI splits no calls over devices")
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import Scene, made
from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import encode


@pytest.fixture
def scene(monkeypatch):
    return Scene(monkeypatch)


def split(patcher):
    """Return a clone of a model whose calls are split over two devices."""
    with torch.inference_mode():
        clone = patcher.clone()
        other = ModelPatcher(tiny.build("sd15").model, torch.device("cpu", 0), torch.device("cpu"))
        other.is_multigpu_base_clone = True
        clone.set_additional_models("multigpu", [other])
    return clone


@pytest.fixture
def rows(scene):
    """Return how many rows the network and its copy have computed."""

    def count(patcher):
        found = []
        networks = [patcher.model, *(each.model for each in patcher.get_additional_models_with_key("multigpu"))]
        for number, network in enumerate(networks):
            network.diffusion_model.register_forward_pre_hook(
                lambda module, args, number=number: found.append((number, len(args[0])))
            )
        return found

    yield count
    scene.model.model.diffusion_model._forward_pre_hooks.clear()


def scored(scene, model, **settings):
    settings = {"policy": "observe", "mitigation": None} | settings
    model, watcher = scene.watched(settings.pop("mitigation"), model=model, **settings)
    latents = scene.sample(model)
    return latents, watcher.report_of(latents)


def test_the_split_is_a_split(scene, rows):
    model = split(scene.model)
    found = rows(model)
    plain = scene.sample(model)
    assert {number for number, _ in found} == {0, 1}
    torch.testing.assert_close(plain, scene.sample(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("detectors", ["text_noise_norm", ["attention_entropy", "text_noise_norm"]])
def test_the_score_is_that_of_one_device_and_costs_nothing(scene, rows, detectors):
    settings = {"detectors": detectors, "profile": None}
    _, alone = scored(scene, scene.model, **settings)
    model = split(scene.model)
    plain = scene.sample(model)
    found = rows(model)
    latents, report = scored(scene, model, **settings)
    assert torch.equal(latents, plain) and report.extra_rows == 0 and report.error is None
    assert {number for number, _ in found} == {0, 1}
    for one, other in zip(report.findings, alone.findings, strict=True):
        assert one.scores == pytest.approx(other.scores, rel=1e-4), (one.status, other.status)


def test_attention_is_read_of_the_copy_that_has_the_prompt(scene, rows):
    """DualCFG's prompt is the last of three, so that the copy predicts it, while the network predicts the others."""
    found = []
    for model in (scene.model, split(scene.model)):
        seen = rows(model)
        watched, watcher = scene.watched(
            None, model=model, policy="observe", detectors="attention_entropy", profile=None
        )
        conds = scene.positive, encode(scene.clip, "a blue house"), scene.negative
        with torch.inference_mode():
            latents = scene.guide(Guider_DualCFG, conds, (7.5, 3.0), watched)
        found.append(watcher.report_of(latents).findings[0])
    assert (1, 1) in seen and (0, 2) in seen
    alone, other = found
    assert other.status == "ok" and other.scores == pytest.approx(alone.scores, rel=1e-4)


@pytest.mark.parametrize("name", ["attention_scaling", "neuron_mask", "padding", "guidance_delay"])
def test_a_treatment_acts_as_on_one_device(scene, name):
    expected = scene.sample(scene.treated(made(name)))
    latents = scene.sample(scene.treated(made(name), model=split(scene.model)))
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(latents, scene.sample(), atol=1e-3)


@pytest.mark.parametrize("name", ["attention_scaling", "noise_adjustment", "prompt_optimization"])
def test_policy_mitigate_makes_its_own_calls_on_one_device(scene, name):
    _, alone = scored(scene, scene.model, policy="mitigate", mitigation=made(name))
    _, report = scored(scene, split(scene.model), policy="mitigate", mitigation=made(name))
    assert report.error is None and report.extra_rows == alone.extra_rows
    for one, other in zip(report.attempts, alone.attempts, strict=True):
        assert one.kept and one.scores == pytest.approx(other.scores, rel=1e-3)


def test_words_are_those_of_one_device(scene):
    from memguard_pack.memguard import Guard
    from memguard_pack.memguard.hosts.comfyui.watcher import Watcher

    found = []
    for model in (scene.model, split(scene.model)):
        watcher = Watcher(Guard(), clip=scene.clip, explain="always")
        report = watcher.report_of(scene.sample(watcher.install(model)))
        found.append(report.attribution)
        assert report.error is None
    alone, other = found
    assert other.method == alone.method == "gradient"
    assert [word for word, _ in other.words] == [word for word, _ in alone.words]
    assert [weight for _, weight in other.words] == pytest.approx([weight for _, weight in alone.words], rel=1e-3)
