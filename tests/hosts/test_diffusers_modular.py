"""Modular pipelines have no encode_prompt that could be asked: scored by what their scheduler receives, no more."""

import diffusers
import pytest
import torch

import memguard
from memguard import Guard
from memguard.mitigations import available, get
from tests.hosts import tiny
from tests.hosts.test_diffusers import seeded

pytestmark = pytest.mark.skipif(
    not hasattr(diffusers, "StableDiffusionXLAutoBlocks"), reason="this diffusers has no modular pipelines"
)
SAID = "this pipeline has no encode_prompt, so the rows that carry the prompt cannot be told"
NEEDS = {"paraphrase": {"text": "a blue house"}}


@pytest.fixture(scope="module")
def pipe():
    whole = tiny.sdxl()
    made = diffusers.StableDiffusionXLAutoBlocks().init_pipeline()
    parts = {k: v for k, v in whole.components.items() if v is not None and k in made.component_names}
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=5.0)
    made.update_components(**parts, guider=guider, image_processor=whole.image_processor)
    made.set_progress_bar_config(disable=True)
    return made


def generate(pipe, block=None):
    settings = {"prompt": "a red fox", "num_inference_steps": 3, "height": 16, "width": 16, "output_type": "latent"}
    if block is None:
        return pipe(**settings, output="images", generator=seeded())
    with block.attach(pipe):
        return pipe(**settings, output="images", generator=seeded())


@pytest.mark.parametrize("policy", ["observe", "mitigate"])
def test_watching(pipe, policy):
    guard = Guard(("text_noise_norm", "attention_entropy"), policy=policy)
    assert torch.equal(generate(pipe), generate(pipe, guard))
    norm, entropy = guard.report.findings
    whole, other = tiny.sdxl(), Guard(("text_noise_norm", "attention_entropy"))
    with other.attach(whole):
        whole("a red fox", num_inference_steps=3, height=16, width=16, output_type="latent", generator=seeded())
    assert norm.scores == (pytest.approx(other.report.findings[0].scores[0], rel=1e-4),)
    assert entropy.scores == (pytest.approx(other.report.findings[1].scores[0], rel=1e-4),)
    assert guard.report.error is None and guard.report.extra_rows == 0


def test_a_guider_that_does_not_guide_by_the_prompt_is_no_score(pipe):
    pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=1.0))
    guard = Guard()
    generate(pipe, guard)
    pipe.update_components(guider=diffusers.ClassifierFreeGuidance(guidance_scale=5.0))
    assert guard.report.findings[0].scores == ()


def test_the_empty_reference_needs_the_text(pipe):
    guard = Guard(("text_noise_norm", "attention_entropy"), reference="empty")
    assert torch.equal(generate(pipe), generate(pipe, guard))
    assert [(finding.status, finding.scores) for finding in guard.report.findings] == 2 * [(SAID, ())]


@pytest.mark.parametrize("name", [name for name in available() if name != "neuron_mask"])
def test_a_mitigation_is_left_out(pipe, name, caplog):
    plain = generate(pipe)
    caplog.clear()
    assert torch.equal(generate(pipe, get(name, **NEEDS.get(name, {}))), plain)
    assert caplog.messages[0].endswith(f"was left out: {SAID}")


@pytest.mark.parametrize(
    "ask", [lambda pipe: list(memguard.scan(pipe, ["a fox"])), lambda pipe: memguard.explain(pipe, "a fox")]
)
def test_prompts_cannot_be_asked_for(pipe, ask):
    with pytest.raises(ValueError, match="does not know how StableDiffusionXLModularPipeline .* it has no prompt"):
        ask(pipe)
