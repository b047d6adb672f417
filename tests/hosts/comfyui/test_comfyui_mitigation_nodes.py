"""The mitigation nodes, executed as ComfyUI executes them: alone in a graph, chained, and as an input of MemGuard."""

import importlib

import folder_paths
import numpy as np
import pytest
import torch

from memguard_pack.memguard import mitigations
from memguard_pack.memguard.comparison import compare, table
from memguard_pack.memguard.hosts.comfyui import model as models
from memguard_pack.memguard.hosts.comfyui import profiles
from memguard_pack.memguard.mitigations.neuron_mask import NeuronMask
from memguard_pack.memguard.records import Attempt, Finding, NeuronSet, Report
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import LAYER, PROMPT, Scene, made

MASKED = NeuronMask._treat


@pytest.fixture
def scene(monkeypatch):
    return lambda **settings: Scene(monkeypatch, **settings)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/memguard in a folder of the test's own."""
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "memguard", raising=False)
    profiles.register()
    yield tmp_path / "models" / "memguard"
    folder_paths.folder_names_and_paths.pop("memguard")


def run(file, **inputs):
    """Execute the first node of a file in inference mode, as ComfyUI does; unset inputs have their defaults."""
    node = importlib.import_module(f"memguard_pack.nodes.{file}")
    cls = next((each for each in node.NODES if each.__name__ == inputs.get("cls")), node.NODES[0])
    inputs.pop("cls", None)
    schema = cls.define_schema()
    given = {each.id: each.default for each in schema.inputs if getattr(each, "default", None) is not None}
    given |= inputs
    assert set(given) <= {each.id for each in schema.inputs}
    with torch.inference_mode():
        return cls.execute(**given)


def test_attention_scaling_alone_is_the_treater(scene):
    here = scene()
    treated, mitigation = run("attention_scaling", model=here.model, clip=here.clip).result
    assert mitigation == (mitigations.get("attention_scaling"),)
    assert torch.equal(here.sample(treated), here.sample(here.treated(made("attention_scaling"))))
    assert run("attention_scaling").result[0] is None
    untouched = run("attention_scaling", model=here.model, strength=0.0).result[0]
    assert torch.equal(here.sample(untouched), here.sample())


def test_chained_mitigations_are_tried_in_their_order(scene):
    first = run("guidance_delay", transition="dynamic", before=-1.0, strength=0.5).result[1]
    both = run("mitigation", method="padding", mitigation=first).result[1]
    assert [each.NAME for each in both] == ["guidance_delay", "padding"]
    assert (both[0].transition, both[0].before, both[0].strength) == ("dynamic", -1.0, 0.5)


@pytest.mark.parametrize("method", ["padding", "spike_attenuation", "local_guidance", "guard", "random_tokens"])
def test_the_other_mitigations_treat_a_model(method, scene):
    here = scene()
    treated, _ = run("mitigation", method=method, model=here.model, clip=here.clip).result
    assert torch.equal(here.sample(treated), here.sample(here.treated(mitigations.get(method))))
    assert not torch.equal(here.sample(treated), here.sample())


def test_auto_and_paraphrase_say_what_they_need(scene):
    here = scene()
    assert run("mitigation", method="auto").result == (None, ("auto",))
    with pytest.raises(ValueError, match="^auto decides by a run's score; connect mitigation to MemGuard"):
        run("mitigation", method="auto", model=here.model)
    with pytest.raises(ValueError, match="^paraphrase: text is empty; give the prompt in other words$"):
        run("mitigation", method="paraphrase")
    own = run("mitigation", method="paraphrase", text="a crimson fox").result[1]
    assert own[0].text == "a crimson fox"


def test_memguard_takes_a_mitigation(scene, monkeypatch, rows):
    guard = importlib.import_module("memguard_pack.nodes.guard")

    class Hidden:
        unique_id = "5"

    monkeypatch.setattr(guard.MemGuard, "hidden", Hidden, raising=False)
    here = scene()
    known = here.watched(None)[1].guard.profile
    own = run("attention_scaling").result[1]
    settings = {"model": here.model, "clip": here.clip, "profile": known, "explain": "never"}
    watched, watcher = run("guard", policy="mitigate", mitigation=own, **settings).result
    report = watcher.report_of(here.sample(watched))
    assert [attempt.mitigation for attempt in report.attempts] == ["Attention scaling"]
    observed, watcher = run("guard", policy="observe", mitigation=own, **settings).result
    assert torch.equal(here.sample(observed), here.sample())
    with pytest.raises(ValueError, match="^policy mitigate decides at the first step; use steps 1"):
        run("guard", policy="mitigate", steps=2, **settings)
    with pytest.raises(ValueError, match="4 were given; give one to 3"):
        run("guard", policy="mitigate", mitigation=own * 4, **settings)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_optimised_prompt_scores_what_the_optimisation_reached(kind, batch, scene, watch):
    here = scene(kind=kind)
    here.positive, here.negative = tiny.prompt(kind, 1), tiny.prompt(kind, 2)
    latent = {"samples": tiny.latent(kind, batch)}
    inputs = {"model": here.model, "positive": here.positive, "negative": here.negative, "latent": latent, "seed": 5}
    out = run("optimize_prompt", iterations=3, pooled=kind == "sdxl", **inputs)
    conditioning, mitigation, score = out.result
    assert mitigation[0].iterations == 3 and out.ui["text"][0].endswith("in 3 iterations")
    watched, watcher = watch(here.model)
    seen = here.sample(watched, positive=conditioning, image=latent["samples"])
    assert watcher.report_of(seen).findings[0].score == pytest.approx(score, rel=1e-5)
    before = watcher.report_of(here.sample(watched, image=latent["samples"])).findings[0].score
    assert score < before
    assert here.positive[0][0].shape == conditioning[0][0].shape
    assert not torch.equal(here.positive[0][0], conditioning[0][0])


def test_the_strength_of_the_optimised_prompt_and_of_the_adjusted_noise(scene, watch):
    here = scene()
    latent = {"samples": tiny.latent()}
    inputs = {"model": here.model, "positive": here.positive, "negative": here.negative, "latent": latent}
    texts = {}
    for strength in (0.0, 0.5, 1.0):
        conditioning, (own,), score = run("optimize_prompt", seed=5, iterations=3, strength=strength, **inputs).result
        texts[strength] = conditioning[0][0]
        watched, watcher = watch(here.model)
        seen = here.sample(watched, positive=conditioning)
        assert watcher.report_of(seen).findings[0].score == pytest.approx(score, rel=1e-4)
        assert own.strength == strength
    assert torch.equal(texts[0.0], here.positive[0][0])
    torch.testing.assert_close(texts[0.5], (texts[0.0] + texts[1.0]) / 2)
    assert not torch.equal(texts[1.0], texts[0.0])
    own = torch.randn((1, 4, 8, 8), generator=torch.manual_seed(5))
    same = run("adjust_noise", noise_seed=5, strength=0.0, **inputs).result[0].generate_noise(latent)
    half = run("adjust_noise", noise_seed=5, strength=0.5, **inputs).result[0].generate_noise(latent)
    assert torch.equal(same, own)
    assert not torch.equal(half, own) and half.norm() == pytest.approx(float(own.norm()), rel=1e-4)


def test_optimize_prompt_says_what_is_missing(scene):
    here = scene()
    assert run("optimize_prompt").result[0] is None
    with pytest.raises(ValueError, match="^positive is not connected; with a model, connect what the sampler gets$"):
        run("optimize_prompt", model=here.model)
    more = {"negative": here.negative, "latent": {"samples": tiny.latent()}, "model": here.model}
    with pytest.raises(ValueError, match="^positive holds 2 parts; optimise one prompt by itself"):
        run("optimize_prompt", positive=here.positive * 2, **more)
    with pytest.raises(ValueError, match="^prompt_optimization: lr is -1; give a learning rate above 0"):
        run("optimize_prompt", lr=-1)
    out = run("optimize_prompt", positive=here.positive, target=1e-9, iterations=1, **more)
    assert "the target 1e-09 was not reached, give it more iterations" in out.ui["text"][0]


@pytest.mark.parametrize("method", ["batch", "sample", "sail"])
def test_adjusted_noise_is_what_a_sampler_starts_from(method, scene):
    here = scene()
    latent = {"samples": tiny.latent(batch=2)}
    inputs = {"model": here.model, "positive": here.positive, "negative": here.negative, "latent": latent}
    settings = {"method": method, "iterations": 2, "rounds": 1, "target": 1e-5}
    noise, mitigation = run("adjust_noise", noise_seed=5, **settings, **inputs).result
    drawn = noise.generate_noise(latent)
    assert noise.seed == 5 and drawn.shape == (2, 4, 8, 8) and not drawn.requires_grad
    own = torch.randn((2, 4, 8, 8), generator=torch.manual_seed(5))
    assert not torch.equal(drawn, own) and mitigation[0].method == method
    if method == "batch":
        guided = made("noise_adjustment", rounds=1, until=1000.0)
        seen = here.sample(here.treated(guided), image=latent["samples"])
        with torch.inference_mode():
            plain = torch.stack(list(drawn))
            expected = _from(here, plain, latent["samples"])
        assert torch.allclose(seen, expected, atol=1e-4)
    if method == "sample":  # along the gradient of the gap itself
        before, after = (_gap(here, each, latent["samples"]) for each in (own, drawn))
        assert after < before and drawn.norm() == pytest.approx(float(own.norm()), rel=1e-4)
    with pytest.raises(ValueError, match="connect the latent that MemGuard Adjust Noise got$"):
        noise.generate_noise({"samples": tiny.latent(batch=3)})


def _gap(here, noise, image):
    x = noise * (1 + float(here.model.model.model_sampling.sigma_max) ** 2) ** 0.5
    sigma = float(here.model.model.model_sampling.sigma_max)
    with torch.inference_mode():
        return float(tiny.gap(here.model, here.positive, here.negative, x, sigma).flatten(1).norm(dim=1).mean())


def _from(here, noise, image):
    import comfy.sample

    return comfy.sample.sample(
        here.model, noise, 3, 7.5, "euler", "normal", here.positive, here.negative, image, seed=5, disable_pbar=True
    )


def test_neurons_are_saved_loaded_and_masked(scene, folder, monkeypatch):
    here = scene()
    monkeypatch.setattr(NeuronMask, "_treat", MASKED)
    own = NeuronSet({LAYER: (0, 3, 5)}, model=models.name_of(here.model))
    saved = run("load_neurons", cls="MemGuardSaveNeurons", neurons=own, name="mine").result[0]
    assert saved == str(folder / "mine.safetensors")
    loaded = run("load_neurons", name="mine.safetensors").result[0]
    assert loaded == own
    treated, mitigation = run("neuron_mask", neurons=loaded, model=here.model).result
    assert mitigation[0].factor is None and not torch.equal(here.sample(treated), here.sample())
    half = run("neuron_mask", neurons=loaded, factor=0.5, model=here.model).result[0]
    assert not torch.equal(here.sample(treated), here.sample(half))
    with pytest.raises(ValueError, match="^neuron set 'x.safetensors' is not below models/memguard; run MemGuard Find"):
        from memguard_pack.memguard.hosts.comfyui import neurons

        neurons.path_of("x.safetensors")
    with pytest.raises(ValueError, match="give a file name without a folder"):
        run("load_neurons", cls="MemGuardSaveNeurons", neurons=own, name="../mine")


@pytest.mark.parametrize(
    ("neurons", "reason"),
    [
        (NeuronSet({LAYER: (0,)}, model="another"), "was made for model another, and this is model"),
        (NeuronSet({"nowhere": (0,)}), "names nowhere, which is no cross-attention layer of this model"),
        (NeuronSet({LAYER: (999,)}), "names neuron 999 of"),
    ],
)
def test_a_set_that_does_not_fit_gets_one_line_and_the_picture(neurons, reason, scene, monkeypatch):
    here = scene()
    monkeypatch.setattr(NeuronMask, "_treat", MASKED)
    watched, watcher = here.watched(mitigations.get("neuron_mask", neurons=neurons))
    seen = here.sample(watched)
    assert torch.equal(seen, here.sample())
    (attempt,) = watcher.report_of(seen).attempts
    assert reason in attempt.changes[0] and not attempt.kept


def test_bad_settings_get_one_line():
    with pytest.raises(ValueError, match="^attention_scaling: bos_scale is 0; give a number above 0, such as 1.25"):
        run("attention_scaling", bos_scale=0)
    with pytest.raises(ValueError, match="^neuron_mask: neurons is empty; load a set, or find one"):
        run("neuron_mask", neurons=NeuronSet({}))


@pytest.mark.parametrize("mode", ["fast", "official"])
def test_find_neurons_searches_the_model(mode, scene, rows):
    here = scene()
    inputs = {"model": here.model, "clip": here.clip, "latent": {"samples": tiny.latent(side=16)}, "text": PROMPT}
    with rows(here.model) as spent:
        out = run("find_neurons", images=2, threshold=0.02, mode=mode, prompts="a cat\na dog\na house", **inputs)
    found, said = out.result
    assert found.model == models.name_of(here.model) and found.rows >= sum(spent) > 0
    assert set(found.indices) <= {name for name in here.watched(None) and _layers(here)}
    assert "NeMo, mode" in said and not any(part._forward_hooks for part in here.model.model.modules())


def test_a_stopped_search_goes_on_where_it_was(scene, rows, monkeypatch, tmp_path):
    import comfy.model_management
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_temp_directory", lambda: str(tmp_path))
    here = scene()
    inputs = {"model": here.model, "clip": here.clip, "latent": {"samples": tiny.latent(side=16)}, "text": PROMPT}
    inputs |= {"images": 2, "threshold": 0.02, "prompts": "a cat\na dog\na house"}
    with rows(here.model) as whole:
        expected = run("find_neurons", **inputs).result[0]
    assert not list(tmp_path.iterdir())
    asked, spent = comfy.model_management.throw_exception_if_processing_interrupted, []

    def pressed():
        if spent and sum(spent[0]) > 5:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", pressed)
    with rows(here.model) as first, pytest.raises(comfy.model_management.InterruptProcessingException):
        spent.append(first)
        run("find_neurons", **inputs)
    assert len(list(tmp_path.iterdir())) == 1 and sum(first) > 0
    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", asked)
    with rows(here.model) as second:
        found = run("find_neurons", **inputs).result[0]
    assert found == expected
    # newer ComfyUI stops within a call, and that one is made again
    assert 0 <= sum(first) + sum(second) - sum(whole) <= max(first)
    assert sum(second) < sum(whole)
    assert not list(tmp_path.iterdir())


def _layers(here):
    from memguard_pack.memguard.hosts.comfyui.attention import cross_layers

    return cross_layers(here.model.model)


def test_the_probe_is_the_model_by_hand(scene):
    import comfy.samplers

    from memguard_pack.memguard.hosts.comfyui.preflight import FirstCall
    from memguard_pack.memguard.hosts.comfyui.probing import ComfyProbe

    here, found = scene(), {}

    class Looking(FirstCall):
        def sample(self, guider, sigmas, extra, callback, noise, *rest):
            probe = ComfyProbe(guider, guider.conds["positive"][0], noise, extra["model_options"])
            x, t = probe.start()
            found["plain"] = probe.noise(x, t, {})
            zero = torch.ones(2, probe.layers[LAYER])
            zero[1] = 0
            found["masked"], found["rows"] = probe.noise(x, t, {LAYER: zero}), probe.rows.forward
            found["activations"] = probe.activations()[LAYER]
            with torch.inference_mode(False):
                gate = torch.ones(1, probe.layers[LAYER], requires_grad=True)
                with probe.gradients({LAYER: gate}) as cost:
                    made = probe.noise(x.clone(), t, {}).square().sum()
                    made.backward()
            found["gradient"], found["cost"] = gate.grad, cost
            return noise

    guider = comfy.samplers.CFGGuider(here.model)
    guider.inner_set_conds({"positive": here.positive})
    noise = torch.randn((2, 4, 8, 8), generator=torch.manual_seed(5))
    with torch.inference_mode():
        guider.sample(noise, tiny.latent(batch=2), Looking(), torch.tensor([14.6, 0.0]), disable_pbar=True, seed=5)
        x, sigma = tiny.start(here.model, tiny.latent(batch=2))
        expected = tiny.predict(here.model, here.positive, x, sigma)
        to_v = here.model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn2.to_v.weight
        activation = (here.positive[0][0] @ to_v.T).abs().mean(1)[0]
    assert torch.allclose(found["plain"], expected, atol=1e-4) and found["rows"] == 4
    assert torch.equal(found["plain"][0], found["masked"][0]) and not torch.equal(found["plain"][1], found["masked"][1])
    assert torch.allclose(found["activations"], activation, atol=1e-5)
    assert found["cost"] == 3 and float(found["gradient"].abs().max()) > 0


# --- MemGuard Compare ----------------------------------------------------------------------------------------------


def test_compare_lays_two_pictures_side_by_side():
    before, after = torch.zeros(2, 32, 48, 3), torch.ones(2, 32, 48, 3)
    (picture,) = run("compare", before=before, after=after).result
    assert picture.shape == (2, 59, 104, 3)
    assert float(picture[0, 19:51, :48].max()) == 0 and float(picture[0, 19:51, 56:].min()) == 1
    with pytest.raises(ValueError, match="^before holds 2 pictures and after 1; connect two of one batch size$"):
        run("compare", before=before, after=after[:1])


def test_the_table_tells_each_attempt():
    finding = Finding("text_noise_norm", scores=(4.0,), rms=(0.1,), verdict="memorized")
    attempts = (Attempt("Padding", scores=(3.5,), verdict="memorized"), Attempt("Noise adjustment", kept=True))
    lines = table(Report("x", findings=(finding,), attempts=attempts))
    assert lines == [
        "score before 4, memorized",
        "1. Padding: 3.5, memorized, taken back",
        "2. Noise adjustment: not scored, kept",
    ]
    assert table(Report("x", findings=(Finding("text_noise_norm", status="cfg is 1"),))) == [
        "no score, because cfg is 1"
    ]
    assert table(Report("x", findings=(finding,))) == ["score of the right picture 4, memorized"]
    wide = compare(np.zeros((8, 8, 3), np.uint8), np.zeros((16, 8, 3), np.uint8), lines)
    assert wide.shape[1] > 100 and wide.shape[0] == 8 + 19 * 4 + 8
