"""What is computed beside a run leaves it alone: random generators, caches of other nodes, gradients."""

import sys
from importlib import import_module
from types import ModuleType

import comfy.model_management
import pytest
import torch

from memguard_pack.memguard import Guard
from memguard_pack.memguard.hosts import inference
from memguard_pack.memguard.hosts.comfyui import explaining, preflight, preparing
from memguard_pack.memguard.hosts.comfyui.attempts import CACHED
from memguard_pack.memguard.hosts.comfyui.watcher import Watcher
from memguard_pack.memguard.hosts.inference import differentiable
from memguard_pack.memguard.mitigations.prompt_optimization import PromptOptimization
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import Scene, made
from memguard_pack.tests.hosts.comfyui.test_comfyui_words import profile

SIDE = 32  # 256 pixels


def core(module, name, model, *settings):
    """Return a model as a node of ComfyUI's own makes it."""
    cls = getattr(import_module(f"comfy_extras.nodes_{module}"), name)
    found = cls.execute(model, *settings) if hasattr(cls, "execute") else cls().patch(model, *settings)
    return getattr(found, "args", found)[0]


DRAWS = {
    "ToMe": ("tomesd", "TomePatchModel", 0.5),
    "HyperTile": ("hypertile", "HyperTile", 64, 3, 0, False),
}


@pytest.fixture(params=DRAWS)
def drawing(request, monkeypatch):
    """A scene whose model draws random numbers in every call."""
    here = Scene(monkeypatch)
    module, name, *settings = DRAWS[request.param]
    model = core(module, name, here.model, *settings)
    image = tiny.latent(side=SIDE)
    plain = here.sample(model, image=image, steps=2)
    hits = []

    def draw(*args, real=torch.randint, **kwargs):
        hits.append(True)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "randint", draw)
    monkeypatch.setattr(import_module(f"comfy_extras.nodes_{module}"), "randint", draw, raising=False)
    assert torch.equal(plain, here.sample(model, image=image, steps=2)) and hits, "this model draws nothing"
    return here, model, image, plain


def test_a_version_without_a_kernel_that_lacks_a_derivative_is_differentiated_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_kitchen", ModuleType("comfy_kitchen"))
    monkeypatch.setattr(inference, "ROPE", ("no_such_rope1",))
    inference._know_rope.cache_clear()
    with differentiable(torch.nn.Linear(2, 2)) as blocks:
        assert blocks == 0
    inference._know_rope.cache_clear()


@pytest.mark.parametrize("way", ["explained", "flagged and explained", "reference empty", "mitigate, ordinary"])
def test_evaluations_of_ours_do_not_shift_the_generators_of_a_run(way, drawing):
    here, model, image, plain = drawing
    known = profile(here.model, 1e-7 if way.startswith("flagged") else 10.0, side=SIDE)
    settings = {"policy": "warn", "profile": known}
    if way == "reference empty":
        settings = {"reference": "empty"}
    if way.startswith("mitigate"):
        settings["policy"] = "mitigate"
    explain = {"explained": "always", "flagged and explained": "flagged"}.get(way, "never")
    empty = here.negative if "reference" in settings else None
    watcher = Watcher(Guard(**settings), empty, clip=here.clip, explain=explain)
    seen = here.sample(watcher.install(model), image=image, steps=2)
    report = watcher.report_of(seen)
    assert torch.equal(plain, seen)
    assert report.error is None and report.findings[0].status == "ok"
    assert report.flagged == way.startswith("flagged")
    assert (report.attribution is not None) == ("explained" in way)


def test_nodes_that_evaluate_leave_the_generators_as_they_were(monkeypatch):
    here = Scene(monkeypatch)
    latent = {"samples": tiny.latent()}
    before = torch.get_rng_state()
    with torch.inference_mode():
        preflight.check(Guard(), here.model, here.positive, here.negative, latent, [5])
        explaining.explain(here.model, here.clip, "a red fox", here.negative, latent, 5)
        preparing.optimized(PromptOptimization(iterations=1), here.model, here.positive, here.negative, latent, 5)
    assert torch.equal(before, torch.get_rng_state())


# --- caches ----------------------------------------------------------------------------------------------------------

EASY = ("easycache", "EasyCacheNode", 3.0, 0.0, 1.0, False)
LAZY = ("easycache", "LazyCacheNode", 3.0, 0.0, 1.0, False)


@pytest.mark.parametrize("cache", [EASY, LAZY])
def test_a_cache_neither_answers_our_evaluations_nor_keeps_them(cache, monkeypatch):
    here = Scene(monkeypatch)
    module, name, *settings = cache
    model = core(module, name, here.model, *settings)
    plain = here.sample(model, steps=4)
    assert not torch.equal(plain, here.sample(steps=4)), "this cache does nothing"
    watched, watcher = here.watched(made("noise_adjustment"), rms=10.0, model=model)
    watcher.clip, watcher.explain = here.clip, "always"
    assert torch.equal(plain, here.sample(watched, steps=4))
    free, alone = here.watched(made("noise_adjustment"))
    here.sample(free, steps=4)
    cached, beside = here.watched(made("noise_adjustment"), model=model)
    here.sample(cached, steps=4)
    (one,), (other,) = alone.guard.report.attempts, beside.guard.report.attempts
    assert one.scores == pytest.approx(other.scores) and one.scores != alone.guard.report.scores_before


@pytest.mark.parametrize("kept", ["output", "difference"])
@pytest.mark.parametrize("name", ["noise_adjustment", "padding"])
def test_an_attempt_that_an_unknown_cache_answered_is_not_scored(name, kept, monkeypatch):
    here = Scene(monkeypatch)
    known = {}

    def remember(apply, given):
        x, prompts = given["input"], tuple(given["c"]["transformer_options"]["uuids"])
        if prompts not in known:
            out = apply(x, given["timestep"], **given["c"])
            known[prompts] = out if kept == "output" else out - x
        return known[prompts] if kept == "output" else known[prompts] + x

    def fresh(**settings):
        model = here.model.clone()
        model.set_model_unet_function_wrapper(remember)
        known.clear()
        return model

    plain = here.sample(fresh(), steps=2)
    watched, watcher = here.watched(made(name), model=fresh())
    seen = here.sample(watched, steps=2)
    (attempt,) = watcher.report_of(seen).attempts
    assert not attempt.kept and CACHED in attempt.changes[-1] and attempt.scores == ()
    assert torch.equal(plain, seen)


def test_a_small_move_of_the_noise_is_no_cache(monkeypatch):
    here = Scene(monkeypatch)
    watched, watcher = here.watched(made("noise_adjustment", rounds=1, until=1000.0))
    (attempt,) = watcher.report_of(here.sample(watched, steps=2)).attempts
    assert attempt.kept and attempt.scores


def test_words_of_a_model_that_always_answers_the_same_are_a_reason(monkeypatch):
    here = Scene(monkeypatch)
    model = here.model.clone()
    model.set_model_unet_function_wrapper(lambda apply, given: given["input"] * 0.5)
    with torch.inference_mode():
        found = explaining.explain(
            model, here.clip, "a red fox", here.negative, {"samples": tiny.latent()}, 5, method="ablation"
        )
    assert found.status == explaining.SAME and found.weights == ()


# --- gradients -------------------------------------------------------------------------------------------------------


def without_gradient(model):
    @torch.no_grad()
    def wrap(apply, given):
        return apply(given["input"], given["timestep"], **given["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(wrap)
    return model


FOREIGN = {
    "in place": lambda model: core("freelunch", "FreeU_V2", model, 1.3, 1.4, 0.9, 0.2),
    "without": without_gradient,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_where_there_is_no_gradient_another_method_stands_in_and_says_so(kind, monkeypatch):
    here = Scene(monkeypatch)
    model = FOREIGN[kind](here.model)
    latent = {"samples": tiny.latent()}
    with torch.inference_mode():
        found = explaining.explain(model, here.clip, "a red fox", here.negative, latent, 5)
    assert found.status == "ok" and any(found.weights)
    watcher = Watcher(Guard(), clip=here.clip, explain="always")
    plain = here.sample(model, steps=2)
    assert torch.equal(plain, here.sample(watcher.install(model), steps=2))
    words = watcher.guard.report.attribution
    assert words.status == "ok" and any(words.weights) and watcher.guard.report.error is None
    if kind == "without":
        assert found.method == "ablation" and "no gradient reaches the prompt" in " ".join(found.notes)
        assert words.method == "attention" and "no gradient reaches the prompt" in " ".join(words.notes)
    said = " ".join((*found.notes, *words.notes))
    assert "variables needed for" not in said and "version" not in said, "raw text of autograd"


def test_a_text_encoder_without_gradients_leaves_the_weights_of_the_encoded_prompt(monkeypatch):
    here = Scene(monkeypatch)
    latent = {"samples": tiny.latent()}
    with torch.inference_mode():
        encoded = explaining.explain(here.model, here.clip, "a red fox", here.negative, latent, 5, respect_to="encoded")
        monkeypatch.setattr(here.clip, "encode_from_tokens", torch.no_grad()(here.clip.encode_from_tokens))
        found = explaining.explain(here.model, here.clip, "a red fox", here.negative, latent, 5)
    assert found.status == "ok" and found.weights == encoded.weights
    assert "the text encoder gives no gradient" in " ".join(found.notes)


@pytest.mark.parametrize("fails", [False, True])
def test_the_host_takes_its_differentiable_branches_for_the_time_of_a_gradient(fails, monkeypatch):
    monkeypatch.setattr(comfy.model_management, "in_training", False, raising=False)
    network = tiny.build("sd15").model.diffusion_model
    try:
        with differentiable(network):
            assert comfy.model_management.in_training is True
            if fails:
                raise KeyError("inside")
    except KeyError:
        pass
    assert comfy.model_management.in_training is False
