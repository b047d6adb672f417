"""Ren et al.'s detectors against the formulas, written down a second time in numpy over every step, layer and head."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from memguard import Guard
from memguard.attributions.attention import Projected, mass
from memguard.detectors import attention_entropy, attention_entropy_late
from memguard.detectors.attention_entropy_late import is_late
from memguard.records import StepEvidence

LAYERS = [*(f"down_blocks.{i}.attn2" for i in range(5)), "mid_block.attn2", "up_blocks.0.attn2"]
STEPS, HEADS, TOKENS, IMAGES = 10, 3, 9, 2
SUMMARY = 5  # the first column of EOS and padding


def attention(seed=0, tokens=TOKENS):
    """Return q and k of every step and layer, and the official dump: [steps, images, layers, heads, tokens]."""
    generator = torch.Generator().manual_seed(seed)
    calls, dump = [], np.zeros((STEPS, IMAGES, len(LAYERS), HEADS, tokens))
    for step in range(STEPS):
        layers = {}
        for number, name in enumerate(LAYERS):
            positions = 16 if number % 2 else 4
            q = 3 * torch.randn((IMAGES, positions, HEADS * 4), generator=generator)
            k = torch.randn((IMAGES, tokens, HEADS * 4), generator=generator)
            layers[name] = Projected(q, k, HEADS)
            for head in range(HEADS):
                part = slice(4 * head, 4 * head + 4)
                logits = np.einsum("bqd,bkd->bqk", q[..., part].double(), k[..., part].double()) / 2.0
                weights = np.exp(logits - logits.max(-1, keepdims=True))
                dump[step, :, number, head] = (weights / weights.sum(-1, keepdims=True)).mean(1)
        calls.append(layers)
    return calls, dump


def evidence(calls, summary=SUMMARY, tokens=TOKENS):
    columns = torch.arange(tokens).unsqueeze(0) >= summary
    return [
        StepEvidence(
            step=step,
            num_steps=STEPS,
            sigma=14.6 - step,
            sigma_max=14.6,
            timestep=None,
            noise_cond=torch.ones(IMAGES, 4, 8, 8),
            noise_uncond=torch.zeros(IMAGES, 4, 8, 8),
            attention={name: mass(found.probabilities()) for name, found in layers.items()},
            summary=columns,
        )
        for step, layers in enumerate(calls)
    ]


def h(p):
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), -1)


def test_e_is_the_entropy_of_the_mean_over_heads_in_the_fourth_layer():
    calls, dump = attention()
    found = attention_entropy.detect(evidence(calls)[:1])
    assert found.scores == pytest.approx(h(dump[0, :, 3].mean(1)).tolist(), rel=1e-5)
    assert found.status == "ok" and found.scores == found.rms and found.per_step == (found.scores,)
    assert found.scores != pytest.approx(h(dump[0, :, 3]).mean(1).tolist(), rel=1e-2)  # not the mean of entropies
    other = attention_entropy.detect(evidence(calls)[:1], layer="mid_block.attn2")
    assert other.scores == pytest.approx(h(dump[0, :, 5].mean(1)).tolist(), rel=1e-5)


@pytest.mark.parametrize("parity", [None, "official"])
def test_d_adds_the_change_of_the_summary_tokens(parity):
    calls, dump = attention()
    found = attention_entropy_late.detect(evidence(calls), parity)
    mean = dump.mean((2, 3))  # over layers and heads
    part = np.where(mean > 0, -mean * np.log(mean), 0)[..., SUMMARY:].sum(-1)
    change = part[8:] - part[0]
    expected = h(mean[8:]).mean(0) + (change if parity else np.abs(change)).mean(0)
    assert found.scores == pytest.approx(expected.tolist(), rel=1e-5)
    assert len(found.per_step) == 2


def test_a_column_without_mass_is_no_nan():
    calls, _ = attention()
    step = evidence(calls)[0]
    masses = {name: values.clone() for name, values in step.attention.items()}
    masses[LAYERS[3]][:, 0] = 0.0
    found = attention_entropy.detect([replace(step, attention=masses)])
    assert all(math.isfinite(score) for score in found.scores)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"attention": None}, "the attention of step 0 was not read"),
        ({"attention": None, "unread": "no cross-attention"}, "no cross-attention"),
        ({"attention": {"down": torch.full((1, 3), torch.nan)}}, "the attention of step 0 holds NaN or infinity"),
    ],
)
def test_what_cannot_be_read_has_a_reason(change, status):
    calls, _ = attention()
    found = attention_entropy.detect([replace(evidence(calls)[0], **change)])
    assert (found.scores, found.status) == ((), status)
    assert attention_entropy.detect([]).status == "no step was recorded"


def test_d_has_a_reason_where_steps_or_tokens_are_missing():
    calls, _ = attention()
    steps = evidence(calls)
    assert attention_entropy_late.detect(steps[:3]).status == "the run's first step and its last fifth are needed"
    nameless = [replace(step, summary=None) for step in steps]
    assert attention_entropy_late.detect(nameless).status == "it is not known which columns are EOS and padding"


def test_a_layer_that_is_not_there_is_named():
    calls, _ = attention()
    found = attention_entropy.detect(evidence(calls)[:1], layer="nose")
    assert found.status.startswith("no layer is called 'nose'; there are: down_blocks.0.attn2, ")


@pytest.mark.parametrize(
    ("names", "expected"),
    [(LAYERS, LAYERS[3]), (["down_a", "down_b", "mid_block"], "down_b"), (["x", "y"], "y")],
)
def test_the_layer_that_is_read(names, expected):
    assert attention_entropy.default_layer(names) == expected


def test_the_last_fifth():
    assert [step for step in range(50) if is_late(step, 50)] == list(range(40, 50))
    assert [step for step in range(3) if is_late(step, 3)] == [2]
    assert not is_late(5, 0)


def test_a_guard_collects_the_first_step_and_the_last_fifth():
    calls, _ = attention()
    guard = Guard(detectors=["text_noise_norm", "attention_entropy_late"])
    run = guard.begin(steps=STEPS)
    steps = evidence(calls)
    taken = [step.step for step in steps if run.wants(step.step) and run.observe(step) is None]
    report = run.finish()
    assert taken == [0, 8, 9]
    norm, late = report.findings
    assert len(norm.per_step) == 1 and norm.score == pytest.approx(16.0)
    assert late.scores == pytest.approx(attention_entropy_late.detect([steps[0], *steps[8:]]).scores)


def test_rows_of_evidence_go_together():
    calls, _ = attention()
    step = evidence(calls)[0]
    second = step.rows(slice(1, 2))
    assert second.attention is not None and len(second.noise_cond) == 1 and second.summary is step.summary
    both = attention_entropy.detect([step]).scores
    assert attention_entropy.detect([second]).scores == pytest.approx(both[1:])


def test_an_image_whose_attention_is_broken_hides_no_other(step):
    share = torch.full((3, 4), 0.25)
    share[1, 2] = math.nan
    names = [f"down_blocks.{i}.attn2" for i in range(4)]
    found = attention_entropy.detect([step(0.1, 0.1, 0.1, attention={name: share for name in names})])
    assert [math.isnan(score) for score in found.scores] == [False, True, False]
    assert found.score == pytest.approx(math.log(4)) and found.status == "ok"
    assert found.caveat == "image 2 of 3 has no score: the attention holds NaN or infinity"
    broken = torch.full_like(share, math.nan)
    none = attention_entropy.detect([step(0.1, 0.1, 0.1, attention={name: broken for name in names})])
    assert (none.scores, none.status) == ((), "the attention of step 0 holds NaN or infinity")
