"""Errors, the stop button and bad input, with mitigations."""

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import torch

from memguard_pack.memguard import mitigations
from memguard_pack.memguard.loop import UNDONE
from memguard_pack.memguard.mitigations.attention_scaling import ScaleAndMask
from memguard_pack.memguard.mitigations.guidance_delay import Static
from memguard_pack.memguard.troubles import UNFORESEEN
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import Scene, made

EVERY = [name for name in mitigations.available() if name != "local_guidance"]


@pytest.fixture
def scene(monkeypatch):
    return lambda **settings: Scene(monkeypatch, **settings)


def state(model):
    """What may not be changed by a run: the patcher's own options, wrappers and patches."""
    parts, kinds = list(model.model.modules()), model.wrappers.items()
    return (
        repr(comfy.model_patcher.create_model_options_clone(model.model_options)),
        {kind: {key: len(each) for key, each in found.items()} for kind, found in kinds},
        (len(model.patches), repr(model.callbacks)),
        sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts),
        ["forward" in part.__dict__ for part in parts],
        all(weight.is_inference() for weight in model.model.parameters()),
    )


@pytest.mark.parametrize("name", EVERY)
def test_nothing_stays_behind(name, scene):
    here = scene()
    watched, watcher = here.watched(made(name))
    treated = here.treated(made(name))
    before = state(here.model), state(watched), state(treated)
    plain = here.sample()
    here.sample(watched)
    here.sample(treated)
    assert (state(here.model), state(watched), state(treated)) == before
    assert torch.equal(plain, here.sample())


def test_an_exception_in_the_sampler_leaves_nothing_behind(scene):
    here = scene()
    watched, _ = here.watched(made("noise_adjustment"))
    treated = here.treated(made("attention_scaling"), model=watched)

    def fails(step, denoised, x, total):
        raise RuntimeError("the preview failed")

    before = state(here.model), state(treated)
    plain = here.sample()
    for model in (watched, treated):
        with pytest.raises(RuntimeError, match="the preview failed"):
            here.sample(model, callback=fails)
    assert (state(here.model), state(treated)) == before
    assert torch.equal(plain, here.sample())


@pytest.mark.parametrize("name", ["noise_adjustment", "prompt_optimization", "auto"])
def test_the_stop_button_works_between_evaluations(name, scene, monkeypatch):
    here = scene()
    watched, watcher = here.watched("auto" if name == "auto" else made(name))
    pressed = []

    def press(*args, **kwargs):
        pressed.append(True)
        comfy.model_management.interrupt_current_processing()

    before = state(here.model)
    hook = here.model.model.diffusion_model.register_forward_pre_hook(
        lambda *_: press() if len(calls) == 2 else calls.append(True)
    )
    calls = []
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            here.sample(watched)
    finally:
        hook.remove()
        comfy.model_management.interrupt_current_processing(False)
    assert pressed and state(here.model) == before
    assert "the run ended early: InterruptProcessingException" in watcher.guard.report.notes


@pytest.mark.parametrize("where", ["start", "edit", "guidance", "treat"])
def test_an_error_of_ours_does_not_cost_the_picture(where, scene, monkeypatch):
    here = scene()
    plain = here.sample()

    def broken(*_, **__):
        raise KeyError("inside")

    target = {
        "start": "memguard_pack.memguard.sampling.Sampling.start",
        "edit": ScaleAndMask,
        "guidance": Static,
        "treat": "memguard_pack.memguard.mitigations.attention_scaling.AttentionScaling._treat",
    }[where]
    if isinstance(target, str):
        monkeypatch.setattr(target, broken)
    else:
        monkeypatch.setattr(target, "__call__", broken)
    watched, watcher = here.watched(made("guidance_delay" if where == "guidance" else "attention_scaling"))
    seen = here.sample(watched)
    report = watcher.report_of(seen)
    assert torch.isfinite(seen).all()
    said = " ".join((report.error or "", *report.notes))
    if where in ("start", "treat"):
        assert "KeyError: 'inside'" in said
    elif where == "edit":
        assert UNFORESEEN in said or UNFORESEEN in str(report.attempts)
    else:  # with a broken part the treatment is ended as a whole, and the sampler starts as if there had been none
        assert torch.equal(seen, plain) and UNDONE.format("before it began") in report.notes
        assert report.actions == () and not report.attempts[0].kept
    assert "'inside'" not in " ".join(report.notes), "raw text is never a note"
    if where != "edit":  # the mask of an edit may stay where its scaling failed
        assert torch.equal(seen, plain)
    treated = here.treated(made("guidance_delay" if where == "guidance" else "attention_scaling"))
    assert torch.isfinite(here.sample(treated)).all()


def test_a_second_start_is_no_error_that_others_may_swallow(scene):
    here = scene()

    class Swallowing(comfy.samplers.CFGGuider):
        def predict_noise(self, *args, **kwargs):
            try:
                return super().predict_noise(*args, **kwargs)
            except Exception as error:
                raise AssertionError("swallowed") from error

    watched, watcher = here.watched(made("noise_adjustment"))
    seen = here.guide(Swallowing, (here.positive, here.negative), (7.5,), watched)
    assert watcher.report_of(seen).attempts[0].kept


# --- bad input -----------------------------------------------------------------------------------------------------


def test_predictions_that_are_not_numbers(scene):
    here = scene()
    with torch.inference_mode():
        here.model = tiny.build("sd15", seed=4)
        here.model.model.diffusion_model.out[2].weight.fill_(float("nan"))
    watched, watcher = here.watched(made("prompt_optimization"))
    report = watcher.report_of(here.sample(watched))
    assert report.findings[0].status == "the model's prediction at step 0 holds NaN or infinity"
    assert report.attempts == ()


def test_a_target_that_is_not_reached(scene):
    here = scene()
    watched, watcher = here.watched(made("prompt_optimization", target=1e-9))
    (attempt,) = watcher.report_of(here.sample(watched)).attempts
    assert "the target 1e-09 was not reached, give it more iterations" in attempt.changes[0]


def test_weights_without_a_derivative_get_one_line(scene, monkeypatch):
    here = scene()
    plain = here.sample()
    float8 = RuntimeError("derivative for aten::_scaled_mm is not implemented\nand more")
    network = here.model.model.diffusion_model
    forward = network._forward

    def refuse(*args, **kwargs):
        if torch.is_grad_enabled():
            raise float8
        return forward(*args, **kwargs)

    monkeypatch.setattr(network, "_forward", refuse, raising=False)
    watched, watcher = here.watched(made("prompt_optimization"))
    seen = here.sample(watched)
    (attempt,) = watcher.report_of(seen).attempts
    assert torch.equal(plain, seen)
    assert attempt.changes == (
        "Prompt optimisation was left out: these weights have no gradient; use one without gradients such as padding or"
        " noise_adjustment",
    )
