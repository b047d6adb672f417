"""Calls whose rows or sizes another node changes, runs that cannot be seen, and reasons that must be true."""

from importlib import import_module

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP

from memguard_pack.memguard import Guard, MemorizationStop
from memguard_pack.memguard.hosts.comfyui.attention import ROWS, Unreadable, cross_paths
from memguard_pack.memguard.hosts.comfyui.watcher import Watcher
from memguard_pack.memguard.troubles import UNFORESEEN
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import Scene
from memguard_pack.tests.hosts.comfyui.test_comfyui_beside import core

BOTH = ("text_noise_norm", "attention_entropy")


def tiled(model):
    """Return a model whose calls are cut into four tiles that are stacked, as TiledDiffusion does."""

    def cut(apply, given):
        x, t = given["input"], given["timestep"]
        size = x.shape[-1] // 2
        tiles = [x[..., i : i + size, j : j + size] for i in (0, size) for j in (0, size)]
        more = {
            name: value.repeat(4, *[1] * (value.ndim - 1)) if isinstance(value, torch.Tensor) else value
            for name, value in given["c"].items()
        }
        a, b, c, d = apply(torch.cat(tiles), t.repeat(4), **more).chunk(4)
        return torch.cat([torch.cat([a, b], -1), torch.cat([c, d], -1)], -2)

    model = model.clone()
    model.set_model_unet_function_wrapper(cut)
    return model


def test_tiles_that_are_stacked_are_no_rows_of_the_prompt(monkeypatch):
    here = Scene(monkeypatch)
    model = tiled(here.model)
    plain = here.sample(model, steps=2)
    watcher = Watcher(Guard(BOTH), clip=here.clip, explain="always")
    seen = here.sample(watcher.install(model), steps=2)
    norm, entropy = watcher.report_of(seen).findings
    assert torch.equal(plain, seen) and norm.status == "ok"
    assert (entropy.status, entropy.scores) == (ROWS, ())
    assert "bright_ending" not in watcher.guard.report.maps


@pytest.mark.parametrize("factor", [2.0, 1.15])
def test_layers_that_change_their_size_within_a_run_have_maps_of_the_last_step(factor, monkeypatch):
    here = Scene(monkeypatch)
    settings = (1, factor, 0.0, 0.35, True, "bicubic", "bicubic")
    model = core("model_downscale", "PatchModelAddDownscale", here.model, *settings)
    watcher = Watcher(Guard(BOTH), clip=here.clip, explain="always")
    watched = watcher.install(model)
    image = tiny.latent(side=16)
    plain = here.sample(model, image=image, steps=4)
    calls = []
    grid = import_module("memguard_pack.memguard.attributions.maps").MapTally.add
    monkeypatch.setattr(
        "memguard_pack.memguard.attributions.maps.MapTally.add",
        lambda self, found: (calls.append({n: each.shape[1] for n, each in found.items()}), grid(self, found))[1],
    )
    assert torch.equal(plain, here.sample(watched, image=image, steps=4))
    report = watcher.guard.report
    assert len(calls) == 4 and calls[0] != calls[-1], "the layers do not change their size"
    assert "bright_ending" in report.maps and "word 0" in report.maps and report.error is None
    assert set(report.maps) <= {"noise_gap", "bright_ending", *(f"word {i}" for i in range(6))}
    left = [
        note
        for note in report.notes
        if "was left out: another node, or the model itself, changes their rows or their size" in note
    ]
    assert bool(left) == (factor == 1.15)


def test_a_layer_with_other_rows_is_left_out_of_the_maps_and_of_the_score(monkeypatch):
    """Regional prompts change the number of rows inside a layer."""
    here = Scene(monkeypatch)
    layer = here.model.model.diffusion_model.get_submodule(next(iter(cross_paths(here.model.model).values())))
    forward = layer.to_q.forward
    watcher = Watcher(Guard(BOTH), clip=here.clip, explain="always")
    watched = watcher.install(here.model)
    plain = here.sample(steps=2)
    read = layer.to_q.register_forward_hook(lambda _m, _i, out: setattr(layer, "seen", out))
    hooks = import_module("memguard_pack.memguard.hosts.comfyui.attention")
    keep = hooks._keep_output

    def odd(found, name, module, inputs, output):
        keep(found, name, module, inputs, output[:1] if module is layer.to_q else output)

    monkeypatch.setattr(hooks, "_keep_output", odd)
    try:
        assert torch.equal(plain, here.sample(watched, steps=2))
    finally:
        read.remove()
    assert layer.to_q.forward == forward
    report = watcher.guard.report
    assert report.findings[0].status == "ok"
    assert report.findings[1].status.startswith("the attention of 1 layers cannot be read")
    assert "word 0" in report.maps and any("1 layers was left out" in note for note in report.notes)


# --- runs that cannot be seen ----------------------------------------------------------------------------------------


class Blind(comfy.samplers.CFGGuider):
    """A guider that predicts in a way of its own."""

    def __call__(self, x, timestep, model_options=None, seed=None):
        cond = self.conds["positive"]
        return comfy.samplers.calc_cond_batch(self.inner_model, [cond], x, timestep, model_options or {})[0]


@pytest.mark.parametrize("policy", ["observe", "stop"])
def test_a_run_that_cannot_be_seen_ends_under_stop(policy, monkeypatch, watch):
    here = Scene(monkeypatch)
    watched, watcher = watch(here.model, policy=policy)
    if policy == "stop":
        with pytest.raises(MemorizationStop, match="no score, because the model was called in a way .* Blind"):
            here.guide(Blind, (here.positive, here.negative), (7.5,), watched)
    else:
        assert torch.isfinite(here.guide(Blind, (here.positive, here.negative), (7.5,), watched)).all()
    assert watcher.guard.report.findings[0].status == (
        "the model was called in a way that MemGuard cannot see (guider Blind)"
    )


def skipping(model):
    """Return a model without guidance in its first call, as nodes that skip steps make it."""

    def skip(executor, x, sigma, options, seed=None):
        guider, cfg = executor.class_obj, executor.class_obj.cfg
        guider.cfg = 1.0 if float(sigma[0]) > 14 else cfg
        try:
            return executor(x, sigma, options, seed)
        finally:
            guider.cfg = cfg

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "skip", skip)
    return model


@pytest.mark.parametrize(("cfg", "said"), [(7.5, "although cfg is 7.5: another node"), (1.0, "cfg is 1: the sampler")])
def test_the_reason_names_the_cfg_that_the_run_has(cfg, said, monkeypatch, watch):
    here = Scene(monkeypatch)
    for policy in ("observe", "stop"):
        watched, watcher = watch(skipping(here.model), policy=policy)
        if policy == "stop":
            with pytest.raises(MemorizationStop, match=said):
                here.sample(watched, steps=2, cfg=cfg)
        else:
            plain = here.sample(skipping(here.model), steps=2, cfg=cfg)
            assert torch.equal(plain, here.sample(watched, steps=2, cfg=cfg))
        assert said in watcher.guard.report.findings[0].status


def test_a_model_whose_attention_is_not_known_is_not_said_to_have_none():
    with pytest.raises(Unreadable, match="^Flux has no cross-attention layers: prompt and picture share"):
        cross_paths(tiny.build("flux").model)

    class WanModel(torch.nn.Module):
        pass

    network = tiny.build("flux").model
    network.diffusion_model = WanModel()
    with pytest.raises(Unreadable, match=r"^MemGuard does not know the attention of this model \(WanModel\)"):
        cross_paths(network)


def elsewhere(here, monkeypatch):
    """Give a model a network that takes its prompt under another name."""
    extra = here.model.model.extra_conds

    def renamed(**given):
        found = extra(**given)
        found["text"] = found.pop("c_crossattn")
        return found

    monkeypatch.setattr(here.model.model, "extra_conds", renamed, raising=False)
    apply = here.model.model.apply_model

    def take(x, t, text=None, **given):
        return apply(x, t, c_crossattn=text, **given)

    monkeypatch.setattr(here.model.model, "apply_model", take, raising=False)


def test_a_model_that_takes_its_prompt_elsewhere_has_a_reason_and_no_key_error(monkeypatch):
    here = Scene(monkeypatch)
    elsewhere(here, monkeypatch)
    watcher = Watcher(Guard(BOTH), clip=here.clip, explain="always")
    here.sample(watcher.install(here.model), steps=2)
    report = watcher.guard.report
    said = " ".join((*(finding.status for finding in report.findings), *report.notes))
    assert "KeyError" not in said and "c_crossattn" not in said and UNFORESEEN not in said


def cut(here, monkeypatch):
    """Let every layer show the rows of one image only."""
    hooks = import_module("memguard_pack.memguard.hosts.comfyui.attention")
    keep = hooks._keep_output
    monkeypatch.setattr(hooks, "_keep_output", lambda found, *args: keep(found, *args[:-1], args[-1][:1]))


def no_memory(here, monkeypatch):
    """Let weighing the words fail in a way that nobody foresaw."""
    weighing = import_module("memguard_pack.memguard.hosts.comfyui.weighing")

    def fail(*_, **__):
        raise KeyError("on purpose")

    monkeypatch.setattr(weighing.Weighing, "take", fail)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut, "another node, or the model itself, changes layers or their rows"),
        (elsewhere, "MemGuard does not know where this model takes its prompt from"),
        (no_memory, UNFORESEEN),
    ],
)
@pytest.mark.parametrize("policy", ["observe", "warn", "stop"])
def test_an_ordinary_run_that_has_its_score_is_not_ended_for_want_of_words(policy, spoil, said, monkeypatch):
    here = Scene(monkeypatch)
    known = here.watched(None, 10.0)[1].guard.profile
    watcher = Watcher(Guard("text_noise_norm", policy=policy, profile=known), clip=here.clip, explain="always")
    watched = watcher.install(here.model)
    spoil(here, monkeypatch)
    assert torch.equal(here.sample(steps=2), here.sample(watched, steps=2))
    report = watcher.guard.report
    lines = " ".join((*report.notes, report.attribution.status if report.attribution else ""))
    assert report.findings[0].status == "ok" and report.findings[0].verdict == "ordinary"
    assert bool(report.error) == (spoil is no_memory) and "bright_ending" not in report.maps
    assert spoil is cut or lines.count(said) == 1
