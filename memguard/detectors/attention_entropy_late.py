"""Entropy of cross-attention in the last fifth of the steps (Ren et al., ECCV 2024, section 4.1, D).

D = mean_t E_t + mean_t |E_t^S - E_0^S| over the last fifth of the steps t, where 0 is the first step, E the entropy of
the attention's mean over heads and layers, and E^S the part of it on the summary tokens (EOS and padding). What differs
from the official code, which ``parity="official"`` reproduces: it takes the difference with its sign, which lowers D
where the summary tokens lose entropy; and it knows 50 steps only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..attributions.attention import entropy
from ..records import Finding, StepEvidence
from .attention_entropy import scored, unreadable, without

NAME = "attention_entropy_late"
TITLE = "Entropy of cross-attention in the last fifth of the steps"
NEEDS = frozenset({"attention", "late"})
UNIT = "entropy of cross-attention, nats"
SHARE = 5  # one step in five is late


def is_late(step: int, num_steps: int) -> bool:
    """Whether a step is among the last fifth; of a short run the last step is."""
    return num_steps > 0 and step >= num_steps - max(1, num_steps // SHARE)


def detect(evidence: Sequence[StepEvidence], parity: Literal["official"] | None = None) -> Finding:
    """Score a run from its first step and those of the last fifth."""
    late = [step for step in evidence if is_late(step.step, step.num_steps)]
    if not evidence or evidence[0].step != 0 or not late:
        return without(NAME, UNIT, evidence, "the run's first step and its last fifth are needed")
    if (why := unreadable([evidence[0], *late])) is not None:
        return without(NAME, UNIT, evidence, why)
    if evidence[0].summary is None:
        return without(NAME, UNIT, evidence, "it is not known which columns are EOS and padding")
    start = _summary(evidence[0])
    values = [entropy(_mean(step)) for step in late]
    shifts = torch.stack([_summary(step) - start for step in late])
    change = shifts.mean(0) if parity == "official" else shifts.abs().mean(0)
    return scored(NAME, UNIT, evidence, torch.stack(values).mean(0) + change, values)


def _mean(step: StepEvidence) -> Tensor:
    """Return the mass of each column, mean over layers, [B, tokens]."""
    assert step.attention is not None
    return torch.stack([mass.float() for mass in step.attention.values()]).mean(0)


def _summary(step: StepEvidence) -> Tensor:
    """Return the part of the entropy on EOS and padding, [B]."""
    assert step.summary is not None
    return entropy(_mean(step), step.summary)
