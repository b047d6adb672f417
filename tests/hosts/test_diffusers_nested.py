"""Several mitigations on one pipeline, and every detector in the closed loop."""

from dataclasses import dataclass, replace

import pytest
import torch

from memguard import Guard
from memguard.calibration.profile import fit
from memguard.hosts.diffusers.attention import cross_layers
from memguard.hosts.diffusers.edits import PLAN
from memguard.mitigations import get
from memguard.mitigations.base import Mitigation
from memguard.records import NeuronSet
from tests.hosts import tiny
from tests.hosts.contract import profile
from tests.hosts.test_diffusers import generate
from tests.spread import spread

PROMPT = "a red fox"
NORM, ENTROPY = "text_noise_norm", "attention_entropy"
NEURONS = NeuronSet({"mid_block.attentions.0.transformer_blocks.0.attn2": (0, 5, 9)})


@dataclass(frozen=True)
class Both(Mitigation):
    """Two mitigations as one."""

    NAME = "both"
    TITLE = "Both"
    SOURCE = "test"

    parts: tuple[Mitigation, ...] = ()

    def _treat(self, start, before):
        for part in self.parts:
            before = part.treat(start, before)
        return before


@pytest.fixture(scope="module")
def sd():
    """A tiny pipeline whose attention is not flat, as that of random weights is."""
    pipe = tiny.sd()
    for layer in cross_layers(pipe.unet).values():
        layer.to_k.weight.data *= 60
    return pipe


def nested(pipe, *mitigations, **given):
    """Generate with the first mitigation attached outermost."""
    if not mitigations:
        return generate(pipe, prompt=PROMPT, **given)
    with mitigations[0].attach(pipe):
        return nested(pipe, *mitigations[1:], **given)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (get("padding"), get("attention_scaling")),
        (get("attention_scaling"), get("padding")),
        (get("neuron_mask", neurons=NEURONS), get("attention_scaling", mask_padding=False)),
        (get("spike_attenuation"), get("attention_scaling")),
        (get("attention_scaling"), get("guidance_delay", until=600.0)),
    ],
)
def test_an_inner_and_an_outer_mitigation_both_act(sd, first, second):
    both = nested(sd, first, second)
    for alone in (first, second):
        assert not torch.equal(both, nested(sd, alone))
    # the inner one is called first, so its edits come first
    torch.testing.assert_close(both, nested(sd, Both((second, first))), rtol=1e-4, atol=1e-5)
    assert PLAN.get() is None
    assert not [module for module in sd.unet.modules() if "forward" in vars(module)]


def test_a_call_that_fails_leaves_no_plan_behind():
    pipe = tiny.sd()

    def broken(*_):
        raise RuntimeError("the denoiser broke")

    handle = pipe.unet.mid_block.register_forward_hook(broken)
    with pytest.raises(RuntimeError, match="the denoiser broke"), get("attention_scaling").attach(pipe):
        generate(pipe, prompt=PROMPT)
    handle.remove()
    assert PLAN.get() is None


def low(pipe, *detectors):
    """A profile in which the prompt is flagged by some detectors, and ordinary for the others."""
    guard = Guard(detectors=(NORM, ENTROPY))
    generate(pipe, guard, prompt=PROMPT)
    found = {each.detector: each.mean_rms for each in guard.report.findings}
    known = profile(guard)
    for name, value in found.items():
        median = value / 2 if name in detectors else 2 * value
        known.distributions[name] = fit(spread(median, 0.1))
    return known


@pytest.mark.parametrize("detectors", [(NORM,), (ENTROPY,), (NORM, ENTROPY)], ids=["norm", "entropy", "both"])
@pytest.mark.parametrize("name", ["padding", "noise_adjustment"])
def test_an_attempt_is_scored_by_the_detector_that_flagged_the_run(sd, detectors, name, monkeypatch):
    """The first step's attention is read again under the treatment, as a guard reads it of a treated run."""
    monkeypatch.setattr("memguard.loop.helped", lambda *_: True)
    mitigation = get(name, **{"rounds": 1} if name == "noise_adjustment" else {})
    expected = Guard(detectors=detectors)
    with mitigation.attach(sd):
        generate(sd, expected, prompt=PROMPT)
    guard = Guard(detectors=detectors, policy="mitigate", mitigation=mitigation, profile=low(sd, *detectors))
    generate(sd, guard, prompt=PROMPT)
    report, (attempt,) = guard.report, guard.report.attempts
    first = max(report.findings, key=lambda each: (each.mean_rms - each.typical) / (each.threshold - each.typical))
    scores = {each.detector: each.scores for each in expected.report.findings}
    assert report.scores_before == first.scores
    assert attempt.scores == pytest.approx(scores[first.detector], rel=5e-3)
    assert attempt.scores != pytest.approx(first.scores, rel=1e-4)
    assert not any("acts after the first step" in line for line in attempt.changes)


def test_an_edit_of_the_attention_is_not_scored_by_attention_and_says_so(sd):
    guard = Guard(detectors=(ENTROPY,), policy="mitigate", mitigation="attention_scaling", profile=low(sd, ENTROPY))
    generate(sd, guard, prompt=PROMPT)
    (attempt,) = guard.report.attempts
    assert (attempt.kept, attempt.scores) == (True, ())
    assert attempt.changes[-1] == (
        "attention_entropy could not be asked again: an edit of the attention itself is not scored by attention"
    )
    assert guard.report.actions == ("BOS logit x 1.25, padding left out of the attention",)


def test_what_came_of_a_treatment_is_told_after_it_was_done(sd):
    known = low(sd, NORM)
    known = replace(known, distributions={NORM: known.distributions[NORM]})
    guard = Guard(policy="mitigate", mitigation=get("guidance_delay", until=1000.0), profile=known)
    made = generate(sd, guard, prompt=PROMPT)
    assert guard.report.actions == ()
    assert guard.report.notes == ("guidance scale 0 until timestep 1000: never took effect in this run",)
    assert torch.equal(made, generate(sd, prompt=PROMPT))
