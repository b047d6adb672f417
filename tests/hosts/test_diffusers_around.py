"""A pipeline that a program around it calls with vectors: what that program tells of them, and what is believed."""

import pytest
import torch

pytest.importorskip("diffusers")

from memguard import Guard
from memguard.hosts.diffusers import attach
from tests.hosts import tiny
from tests.hosts.contract import profile

TEXT, OTHER = "a fox on a roof", "a fish in a pond"
SIZE = {"num_inference_steps": 3, "guidance_scale": 7.5, "width": 32, "height": 32, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipe():
    return tiny.sd()


def run(pipe, guard=None, factor=1.0, **around):
    """Call a pipeline with what a prompt is encoded to; return its latents."""
    cond, uncond = pipe.encode_prompt([TEXT], "cpu", 1, True, [""])
    given = {"prompt_embeds": factor * cond, "negative_prompt_embeds": uncond} | SIZE
    given |= {name: around.pop(name) for name in tuple(around) if name in SIZE}
    given["generator"] = torch.Generator().manual_seed(3)
    if guard is None:
        return pipe(**given).images
    with attach(guard, pipe, **around):
        return pipe(**given).images


@pytest.fixture(scope="module")
def mitigating(pipe):
    guard = Guard()
    run(pipe, guard)
    made = profile(guard)
    return lambda name: Guard(policy="mitigate", mitigation=name, profile=made)


def test_facts_of_the_program_around_win_over_the_pipeline_s_own(pipe):
    guard, plain = Guard(), run(pipe)
    facts = {"host": "around", "prompt": TEXT, "sampler": "Euler", "model": "0123456789abcdef"}
    assert torch.equal(run(pipe, guard, facts=facts), plain)
    report = guard.report
    assert {name: getattr(report, name) for name in facts} == facts
    assert (report.seeds, report.steps, report.width) == ((3,), 3, 32)
    run(pipe, guard)
    assert (guard.report.host, guard.report.prompt) == ("diffusers", None) and len(guard.report.model) == 16


def test_the_program_around_may_begin_the_run_and_its_notes_stay(pipe):
    guard, begun = Guard(), []

    def begin(**facts):
        begun.append(guard.begin(notes=("of the program around",), **facts))
        return begun[0]

    run(pipe, guard, begin=begin)
    assert begun[0].report is guard.report and guard.report.notes == ("of the program around",)
    assert guard.report.findings[0].scores


@pytest.mark.parametrize("mitigation", ["padding", "attention_scaling"])
def test_columns_are_known_from_the_text_that_the_vectors_were_made_of(pipe, mitigating, mitigation):
    known, unknown = mitigating(mitigation), mitigating(mitigation)
    run(pipe, known, texts=[TEXT]), run(pipe, unknown)
    assert known.report.attempts[0].scores and known.report.error is None
    assert "the prompt's tokens are not known" in unknown.report.attempts[0].changes[0]


@pytest.mark.parametrize("texts", [[OTHER], [TEXT, TEXT], [f"{TEXT} {TEXT}"]])
def test_a_text_that_the_vectors_were_not_made_of_is_not_believed(pipe, mitigating, texts):
    guard = mitigating("padding")
    run(pipe, guard, texts=texts)
    assert "the prompt's tokens are not known" in guard.report.attempts[0].changes[0]
    assert guard.report.error is None


@pytest.mark.parametrize(("factor", "believed"), [(1.005, True), (1.05, False)])
def test_vectors_may_be_another_precision_s(pipe, mitigating, factor, believed):
    guard = mitigating("padding")
    run(pipe, guard, factor=factor, texts=[TEXT])
    assert bool(guard.report.attempts[0].scores) == believed and guard.report.error is None


def test_negative_vectors_without_guidance_are_no_prediction(pipe):
    """They come back from encode_prompt, and the pipeline predicts nothing for them."""
    alone, spent = Guard(), Guard(reference="empty")
    plain = run(pipe, guidance_scale=1.0)
    assert torch.equal(run(pipe, alone, guidance_scale=1.0), plain)
    assert alone.report.findings[0].status.startswith("cfg is 1, so the pipeline predicts nothing without the prompt")
    assert torch.equal(run(pipe, spent, guidance_scale=1.0), plain)
    guided = Guard()
    run(pipe, guided)
    assert spent.report.findings[0].scores == pytest.approx(guided.report.findings[0].scores, rel=1e-4)
    assert spent.report.extra_rows == 1
