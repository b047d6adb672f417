"""Real A1111 and Forge: memorized prompts are mitigated, ordinary ones keep every byte."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from memguard import testbed
from memguard.calibration import Conditions, Profile, fit
from memguard.hosts.diffusers.edits import Editor, following
from memguard.hosts.diffusers.texts import groups_of
from memguard.mitigations import available
from memguard.mitigations.attention_scaling import ScaleAndMask
from memguard.mitigations.edit import PADDING, Plan
from memguard.mitigations.neuron_mask import Mask
from memguard.neurons.files import save
from memguard.records import NeuronSet
from tests.spread import spread

MEMORIZED, ORDINARY = "Halley breakfast at noon - press kit", "a red fox on a roof"
NAMES = [name for name in available() if name not in ("neuron_mask", "paraphrase")]  # these need something given


@pytest.fixture(scope="module")
def pipe():
    return testbed.pipeline(wide=True)


def written(server, size=128):
    """Write a profile of this checkpoint below models/memguard, for pictures of a size; return its path.

    Ordinary prompts score what the test bed's card says.
    """
    asked = {"prompt": ORDINARY, "steps": 4, "width": size, "height": size}
    (report,) = server.post("/memguard/v1/check", asked)["reports"]
    finding = report["findings"][0]
    conditions = Conditions(
        *(report["model"], "sd15", (size // 8, size // 8), finding["sigma"], finding["timestep"]),
        *(1, 4, "", "negative", "", 7.5),
    )
    made = Profile(conditions, {"text_noise_norm": fit(spread(0.7 / 32, 0.25))})
    folder = server.folder / "models" / "memguard"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{report['model']}-test.json"
    path.write_text(made.to_json(), encoding="utf-8")
    return path


@pytest.fixture(scope="module", autouse=True)
def profile(server):
    path = written(server)
    yield
    path.unlink()


def mitigated(server, mitigation="auto", guard=None, **changes):
    settings = {"policy": "mitigate", "mitigation": mitigation} | (guard or {})
    return server.generate(settings, **{"prompt": MEMORIZED} | changes)


@pytest.mark.parametrize("sampler", ["Euler", "DDIM", "DPM++ 2M"])
def test_an_ordinary_prompt_keeps_every_byte(server, sampler):
    plain = server.generate(prompt=ORDINARY, sampler_name=sampler)
    watched = mitigated(server, prompt=ORDINARY, sampler_name=sampler)
    (report,) = watched.reports
    # with few steps the samplers of timesteps start below the profile's noise level, and there is no verdict
    assert report["verdict"] in (["ordinary"] if sampler != "DDIM" else ["ordinary", "unknown"])
    assert report["extra_rows"] == 0 and report["attempts"] == [] and report["error"] is None
    assert np.array_equal(plain.pictures[0], watched.pictures[0])


def test_auto_brings_a_memorized_prompt_down(server):
    plain = server.generate(prompt=MEMORIZED)
    made = mitigated(server)
    (report,) = made.reports
    assert report["error"] is None and report["verdict"] == "memorized"
    assert report["verdict_after"] == "ordinary", report["attempts"]
    assert report["scores_after"][0] < 0.5 * report["scores_before"][0]
    assert report["seeds"] == [3] and report["extra_rows"] > 0
    assert not np.array_equal(plain.pictures[0], made.pictures[0])
    assert "mitigated by" in made.info["infotexts"][0]
    again = server.generate(prompt=MEMORIZED)
    assert np.array_equal(plain.pictures[0], again.pictures[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_mitigation_is_carried_out_and_leaves_nothing_behind(server, name):
    plain = server.generate(prompt=MEMORIZED)
    made = mitigated(server, name)
    (report,) = made.reports
    assert report["error"] is None
    (attempt,) = report["attempts"]
    assert np.array_equal(plain.pictures[0], made.pictures[0]) != attempt["kept"], attempt
    if name == "noise_adjustment" and any("older than 1.10" in note for note in report["notes"]):
        return
    assert attempt["scores"] or "acts after the first step" in " ".join(attempt["changes"])
    assert not [line for line in attempt["changes"] if "was left out" in line], attempt
    assert np.array_equal(plain.pictures[0], server.generate(prompt=MEMORIZED).pictures[0])


def scaled(pipe, prompt=MEMORIZED, negative=""):
    """The noise gap's norm of seed 3 under attention_scaling, by the UNet in diffusers."""
    return edited(pipe, ScaleAndMask(1.25, (PADDING,), 1.0, None), prompt, negative)


def edited(pipe, edit, prompt=MEMORIZED, negative=""):
    """The same under an edit."""
    torch.manual_seed(3)
    noise = torch.randn(4, 16, 16)[None]
    last = pipe.scheduler.alphas_cumprod[-1]
    sigma = float(((1 - last) / last).sqrt())
    x = noise * sigma / math.sqrt(sigma**2 + 1)
    cond, uncond = pipe.encode_prompt([prompt], "cpu", 1, True, [negative])
    plan = Plan([edit], torch.tensor([True]), groups_of(pipe, [prompt], 77, 1))
    with torch.no_grad(), Editor(pipe.unet).installed():
        without = pipe.unet(x, 999, encoder_hidden_states=uncond).sample
        with following(plan):
            made = pipe.unet(x, 999, encoder_hidden_states=cond).sample
    return float((made - without).norm())


def test_the_score_after_is_that_of_diffusers(server, pipe):
    (report,) = mitigated(server, "attention_scaling").reports
    expected = scaled(pipe)
    assert report["attempts"][0]["scores"][0] == pytest.approx(expected, rel=1e-3)
    assert expected != pytest.approx(report["scores_before"][0], rel=1e-2)


def test_a_batch_is_mitigated_together(server):
    (report,) = mitigated(server, batch_size=2).reports
    assert len(report["scores_before"]) == 2 and report["error"] is None
    assert report["verdict_after"] == "ordinary"


def test_and_is_refused_with_a_reason(server):
    both = f"{MEMORIZED} AND {MEMORIZED}"
    plain, made = server.generate(prompt=both), mitigated(server, prompt=both)
    (report,) = made.reports
    assert np.array_equal(plain.pictures[0], made.pictures[0])
    assert report["attempts"][0]["changes"] == [
        "the prompt is joined of several by AND, and only one prompt can be mitigated"
    ]


def test_a_flagged_run_at_cfg_1_says_why_it_stays_as_it_is(server, profile):
    """Forge predicts nothing without the prompt there; compared with the empty prompt there is a score all the same."""
    if not server.forge:
        pytest.skip("A1111 predicts both")
    path = written(server)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"reference": "negative"', '"reference": "empty"'), encoding="utf-8")
    try:
        plain = server.generate(prompt=MEMORIZED, cfg_scale=1.0)
        made = mitigated(server, "padding", guard={"reference": "empty"}, cfg_scale=1.0)
    finally:
        path.write_text(text, encoding="utf-8")
    (report,) = made.reports
    assert np.array_equal(plain.pictures[0], made.pictures[0])
    assert report["verdict"] == "memorized", report
    assert report["attempts"][0]["changes"][0].startswith("cfg is 1, so there is no guidance to change")


def test_hires_mitigates_both_passes(server):
    more = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": server.upscaler, "denoising_strength": 0.7}
    if server.forge:
        more |= {"hr_additional_modules": ["Use same choices"], "hr_cfg": 7.5}
    made = mitigated(server, "prompt_optimization", hr_second_pass_steps=4, **more)
    first, second = made.reports
    assert first["attempts"] and second["attempts"][0]["mitigation"].endswith(", as in the first pass")
    assert first["error"] is None and second["error"] is None


def test_a_second_wording(server):
    made = mitigated(server, "paraphrase", guard={"wording": "a white comet above a breakfast table"})
    (report,) = made.reports
    (attempt,) = report["attempts"]
    assert report["error"] is None and attempt["kept"]
    assert "guided by 'a white comet above a breakfast table'" in attempt["changes"]
    assert not np.array_equal(made.pictures[0], server.generate(prompt=MEMORIZED).pictures[0])
    assert "MemGuard wording: a white comet above a breakfast table" in made.info["infotexts"][0]


def test_a_neuron_set_from_the_models_folder(server, pipe):
    model = server.generate({}, prompt=MEMORIZED).reports[0]["model"]
    layers = [(name, layer) for name, layer in pipe.unet.named_modules() if name.endswith("attn2")]
    every = NeuronSet({name: tuple(range(layer.to_v.weight.shape[0])) for name, layer in layers}, model=model)
    path = save(every, server.folder / "models" / "memguard" / "all.safetensors")
    plain = server.generate(prompt=MEMORIZED)
    made = mitigated(server, "neuron_mask", guard={"neurons": "all.safetensors"})
    other = mitigated(server, "neuron_mask", guard={"neurons": "all.safetensors", "parameters": "factor=1"})
    save(replace(every, model="0000"), path)
    strange = mitigated(server, "neuron_mask", guard={"neurons": "all.safetensors"})
    path.unlink()
    gone = mitigated(server, "neuron_mask", guard={"neurons": "all.safetensors"})
    (attempt,) = made.reports[0]["attempts"]
    assert made.reports[0]["error"] is None and f"{every.count} value neurons x 0" in attempt["changes"]
    assert attempt["kept"] and attempt["scores"][0] == pytest.approx(edited(pipe, Mask(every.indices, 0.0)), rel=1e-3)
    for same in (other, strange, gone):
        assert np.array_equal(plain.pictures[0], same.pictures[0])
    assert "the neuron set was made for model 0000" in " ".join(strange.reports[0]["attempts"][0]["changes"])
    assert "there is no file 'all.safetensors' in models/memguard" in gone.info["infotexts"][0]
