"""Mitigations beside other nodes, on other models, and with a MemGuard node before or after."""

import pytest
import torch
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance

from memguard_pack.memguard import mitigations
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import Scene, made
from memguard_pack.tests.hosts.comfyui.test_comfyui_scenarios import limited

EVERY = [name for name in mitigations.available() if name != "local_guidance"]
KINDS = ("attention_scaling", "spike_attenuation", "padding", "guidance_delay", "noise_adjustment")  # one of each kind


@pytest.fixture
def scene(monkeypatch):
    return lambda **settings: Scene(monkeypatch, **settings)


def perturbed(model):
    return PerturbedAttentionGuidance.execute(model, 3.0).result[0]


def self_attention(model):
    return SelfAttentionGuidance.execute(model, 0.5, 2.0).result[0]


@pytest.mark.parametrize("guidance", [perturbed, self_attention])
@pytest.mark.parametrize("name", KINDS)
def test_another_guidance_goes_on(name, guidance, scene):
    here = scene()
    model = guidance(here.model)
    watched, watcher = here.watched(made(name), model=model)
    seen = here.sample(watched)
    assert watcher.report_of(seen).error is None
    plain, ungated = here.sample(model), here.sample(here.treated(made(name), model=model))
    assert not torch.equal(plain, here.sample())
    assert (seen - ungated).abs().max() < 1e-3 * (seen - plain).abs().max()


class Control:
    """As much of a ControlNet as the sampler asks for: something is added to the middle of the network."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        return {"middle": [torch.full((len(x_noisy), 64, 4, 4), 0.3)], "input": [], "output": []}

    def pre_run(self, model, percent_to_timestep_function):
        pass

    def get_models(self):
        return []

    def get_instance_for_device(self, device):
        return self

    def inference_memory_requirements(self, dtype):
        return 0

    def cleanup(self):
        pass

    extra_hooks = None
    previous_controlnet = None
    multigpu_clones = {}

    def get_extra_hooks(self):
        return []


@pytest.mark.parametrize("name", ["attention_scaling", "noise_adjustment", "prompt_optimization"])
def test_a_control_net_goes_on(name, scene):
    here, control = scene(), Control()
    positive, negative = limited(here.positive, control=control), limited(here.negative, control=control)
    watched, watcher = here.watched(made(name))
    seen = here.sample(watched, positive, negative)
    assert watcher.report_of(seen).error is None and watcher.report_of(seen).attempts[0].kept
    plain, ungated = here.sample(None, positive, negative), here.sample(here.treated(made(name)), positive, negative)
    assert (seen - ungated).abs().max() < 1e-3 * (seen - plain).abs().max()
    assert not torch.allclose(plain, here.sample(), atol=1e-3)


@pytest.mark.parametrize("kind", ["vpred", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("name", EVERY)
def test_other_models_are_mitigated_or_have_a_reason(name, kind, scene):
    here = scene(kind=kind)
    watched, watcher = here.watched(made(name))
    seen = here.sample(watched, cfg=4.0)
    report = watcher.report_of(seen)
    assert report.error is None and torch.isfinite(seen).all()
    (attempt,) = report.attempts
    joint = kind in ("sd3", "flux")
    without = name in ("attention_scaling", "spike_attenuation", "neuron_mask", "guard") and joint
    unsuited = without or (name == "padding" and kind != "vpred" and kind != "sdxl")
    assert attempt.kept != unsuited, attempt
    assert torch.equal(seen, here.sample(cfg=4.0)) == unsuited
    if without:
        assert "no cross-attention layers of this model" in attempt.changes[0]
    elif unsuited:
        assert "it acts where prompts are filled up with EOS" in attempt.changes[0]


@pytest.mark.parametrize("name", KINDS)
def test_weights_in_half_precision(name, scene, monkeypatch):
    here = scene()
    with torch.inference_mode():
        model = tiny.build("sd15")
        model.model.diffusion_model.half()
        model.model.diffusion_model.dtype = torch.float16
        model.model.manual_cast_dtype = None
    here.model = model
    watched, watcher = here.watched(made(name))
    try:
        plain = here.sample()
    except RuntimeError as error:
        pytest.skip(f"this torch cannot compute in half precision on the CPU: {error}")
    seen = here.sample(watched)
    report = watcher.report_of(seen)
    assert report.error is None and torch.isfinite(seen).all()
    assert report.attempts[0].kept == (not torch.equal(plain, seen))
    assert "failed" not in " ".join(report.notes)


# --- with a MemGuard node, before or after -------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["guard first", "mitigation first"])
@pytest.mark.parametrize("name", KINDS)
def test_a_treated_model_can_be_watched(name, order, scene, watch):
    here = scene()
    if order == "guard first":
        watched, watcher = watch(here.model)
        both = here.treated(made(name), model=watched)
    else:
        both, watcher = watch(here.treated(made(name)))
    seen = here.sample(both)
    assert torch.equal(seen, here.sample(here.treated(made(name))))
    report = watcher.report_of(seen)
    assert report.findings[0].status == "ok" and report.error is None
    assert report.notes and report.notes[0].startswith(made(name).TITLE)


@pytest.mark.parametrize("order", ["guard first", "mitigation first"])
def test_a_guard_mitigates_on_top_of_a_treated_model(order, scene, rows):
    here = scene()
    inner, outer = made("noise_adjustment", until=1000.0), made("attention_scaling")
    if order == "guard first":
        watched, watcher = here.watched(inner)
        both = here.treated(outer, model=watched)
    else:
        both, watcher = here.watched(inner, model=here.treated(outer))
    with rows(here.model) as spent:
        seen = here.sample(both)
    report = watcher.report_of(seen)
    assert report.attempts[0].kept and report.error is None
    with rows(here.model) as free:
        treated = here.sample(here.treated(outer))
    assert sum(spent) == sum(free) + report.extra_rows
    assert not torch.equal(seen, treated) and not torch.equal(seen, here.sample(here.watched(inner)[0]))
