"""Guiders, prompts of several parts, other nodes, other models, errors and the stop button, with mitigations."""

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from comfy_extras.nodes_perpneg import Guider_PerpNeg

from memguard_pack.memguard import mitigations
from memguard_pack.memguard.mitigations.attention_scaling import ScaleAndMask
from memguard_pack.memguard.mitigations.guidance_delay import Static
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import PROMPT, Scene, encode, made
from memguard_pack.tests.hosts.comfyui.test_comfyui_scenarios import limited

EVERY = [name for name in mitigations.available() if name != "local_guidance"]
KINDS = ("attention_scaling", "spike_attenuation", "padding", "guidance_delay", "noise_adjustment")  # one of each kind
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


# --- other nodes, other models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_perturbed_attention_guidance_goes_on(name, scene):
    here = scene()
    model = PerturbedAttentionGuidance.execute(here.model, 3.0).result[0]
    watched, watcher = here.watched(made(name), model=model)
    seen = here.sample(watched)
    assert watcher.report_of(seen).error is None
    plain, ungated = here.sample(model), here.sample(here.treated(made(name), model=model))
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
        assert "the model has no cross-attention layers" in attempt.changes[0]
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


# --- errors and the stop button ------------------------------------------------------------------------------------


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
        "start": "memguard_pack.memguard.hosts.comfyui.mitigating.start",
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
    assert "inside" in said and "KeyError" in said
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
        "Prompt optimisation was left out: these weights have no gradient (derivative for aten::_scaled_mm is not"
        " implemented); use one without gradients such as padding or noise_adjustment",
    )
