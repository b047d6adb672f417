"""Which model was judged: patches that change what samples, merges, LoRAs on a model and on a prompt, families."""

from dataclasses import replace

import comfy.hooks
import comfy.supported_models
import pytest
import torch

from memguard_pack.memguard.calibration import store
from memguard_pack.memguard.hosts.comfyui import model, patches
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import Scene
from memguard_pack.tests.hosts.comfyui.test_comfyui_beside import core
from memguard_pack.tests.hosts.comfyui.test_comfyui_words import profile


def wrapped(patcher, strength=1.0):
    found = patcher.clone()

    def wrap(apply, given):
        return apply(given["input"], given["timestep"], **given["c"]) * strength

    found.set_model_unet_function_wrapper(wrap)
    return found


def shrunk(patcher, factor=2.0):
    return core("model_downscale", "PatchModelAddDownscale", patcher, 1, factor, 0.0, 0.35, True, "bicubic", "bicubic")


def merged(patcher, ratio=0.0):
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    return ModelMergeSimple().merge(patcher, tiny.build("sd15", seed=9), ratio)[0]


CHANGED = {
    "function wrapper": wrapped,
    "Deep Shrink": shrunk,
    "FreeU": lambda patcher: core("freelunch", "FreeU_V2", patcher, 1.3, 1.4, 0.9, 0.2),
    "merge": merged,
}


@pytest.mark.parametrize("kind", CHANGED)
def test_what_changes_the_predictions_is_not_judged_by_the_checkpoints_profile(kind, monkeypatch, watch):
    here = Scene(monkeypatch)
    known = profile(here.model, 1e-7)
    store.save(known)
    watched, watcher = watch(here.model)
    here.sample(watched, steps=2)
    assert watcher.guard.report.verdict == "memorized", "the profile is not found at all"
    other = CHANGED[kind](here.model)
    watched, watcher = watch(other)
    here.sample(watched, steps=2)
    report = watcher.guard.report
    assert report.verdict == "unknown" and report.findings[0].score is not None
    (note,) = [note for note in report.notes if note.startswith("other nodes change what samples")]
    assert "calibrate the model as it is" in note
    assert report.model == model.sampled(other) and report.model.startswith(model.name_of(here.model))
    # and a profile that was made with it holds
    store.save(replace(known, conditions=replace(known.conditions, model=model.sampled(other))))
    here.sample(watched, steps=2)
    assert watcher.guard.report.verdict == "memorized"


def test_the_name_of_what_samples_follows_the_settings():
    plain = tiny.build("sd15")
    assert model.sampled(plain) == model.name_of(plain)
    assert model.sampled(shrunk(plain)) == model.sampled(shrunk(plain)) != model.sampled(shrunk(plain, 1.5))
    assert model.sampled(wrapped(plain)) == model.sampled(wrapped(plain)) != model.sampled(wrapped(plain, 0.5))
    assert len({model.sampled(merged(plain, ratio)) for ratio in (0.0, 0.5)}) == 2
    assert model.sampled(merged(plain)) == model.sampled(merged(plain))


def test_what_cannot_be_told_apart_is_like_nothing_else():
    plain = tiny.build("sd15")

    def holding(value):
        found = plain.clone()
        found.set_model_attn2_patch(lambda q, k, v, extra: (q + 0 * value.mean(), k, v))
        return found

    one, other = (holding(torch.zeros(2)) for _ in range(2))
    assert model.sampled(one) == model.sampled(one.clone()) != model.sampled(other)


def test_a_given_profile_is_used_all_the_same_with_the_note(monkeypatch, watch):
    here = Scene(monkeypatch)
    watched, watcher = watch(wrapped(here.model), profile=profile(here.model, 1e-7))
    here.sample(watched, steps=2)
    assert watcher.guard.report.verdict == "memorized"
    assert any(note.startswith("other nodes change what samples") for note in watcher.guard.report.notes)


def test_a_lora_is_named_on_the_model_and_on_a_prompt(monkeypatch, watch):
    here = Scene(monkeypatch)
    key = next(name for name in here.model.model.state_dict() if name.endswith("attn2.to_k.weight"))
    weight = here.model.model.state_dict()[key]
    lora = here.model.clone()
    lora.add_patches({key: ("diff", (torch.zeros_like(weight),))})
    assert model.sampled(lora) == model.name_of(lora) and "a LoRA or another patch" in model.remarks(lora)[0]
    hook = comfy.hooks.WeightHook()
    hook.weights, hook.need_weight_init = {key: ("diff", (torch.zeros_like(weight),))}, False
    group = comfy.hooks.HookGroup()
    group.add(hook)
    assert patches.hooked([{"hooks": group}, {}]) == 1
    assert model.remarks(here.model, [{"hooks": group}])[0].startswith("a LoRA on a prompt (a hook) changes 1 weights")


def test_a_family_is_that_of_the_very_class_and_never_inherited():
    assert all(isinstance(getattr(comfy.supported_models, name), type) for name in model.FAMILIES)

    class Patcher:
        def __init__(self, name, base):
            self.model = type("M", (), {"model_config": type(name, (base,), {"__init__": lambda self: None})()})()

    assert model.family(Patcher("Flux", comfy.supported_models.Flux)) == "flux"
    for name, base in (("Flux2", "Flux"), ("LongCatImage", "Flux"), ("SDXLRefiner", "SDXL"), ("LotusD", "SD20")):
        assert model.family(Patcher(name, getattr(comfy.supported_models, base))) == "other"
