"""Entropy of cross-attention at the first step (Ren et al., ECCV 2024, section 4.2, the detector of one layer).

A memorized prompt spreads less of its attention on the BOS token and more on trigger tokens, so the entropy over the
token columns rises. E = -sum_i p_i ln p_i with p the attention of the prompt's rows, mean over heads and positions, in
one layer. What differs from the official code: any number of images, heads and tokens (it reads row 1 of two, 77
columns, 8 heads); a column without mass adds nothing instead of making the score NaN; float32 instead of float16.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..attributions.attention import entropy
from ..records import Finding, StepEvidence

NAME = "attention_entropy"
TITLE = "Entropy of cross-attention at the first step"
NEEDS = frozenset({"attention"})
UNIT = "entropy of cross-attention, nats"
INDEX = 3  # of the layer, among all in the order of execution: down_blocks.1.attentions.1 of SD1


def detect(evidence: Sequence[StepEvidence], layer: str | None = None) -> Finding:
    """Score the collected steps; the score is the mean over them.

    Args:
        evidence: the scored steps.
        layer: name of the layer; None is the fourth one, or the last of the down blocks where the fourth is no down
            layer.

    """
    if (why := unreadable(evidence)) is not None:
        return without(NAME, UNIT, evidence, why)
    values = []
    for step in evidence:
        masses = step.attention or {}
        name = layer or default_layer(tuple(masses))
        if name not in masses:
            return without(NAME, UNIT, evidence, f"no layer is called {name!r}; there are: {', '.join(masses)}")
        values.append(entropy(masses[name].float()))
    return scored(NAME, UNIT, evidence, torch.stack(values).mean(0), values)


def default_layer(names: Sequence[str]) -> str:
    """Return the layer that is read by default, of all cross-attention layers in the order of execution."""
    down = [name for name in names if name.startswith("down")]
    return down[min(INDEX, len(down) - 1)] if down else names[min(INDEX, len(names) - 1)]


def unreadable(evidence: Sequence[StepEvidence]) -> str | None:
    """Return why steps have no attention, or None."""
    if not evidence:
        return "no step was recorded"
    for step in evidence:
        if not step.attention:
            return step.unread or f"the attention of step {step.step} was not read"
    return f"the attention of step {evidence[0].step} holds NaN or infinity" if bool(lost(evidence).all()) else None


def lost(evidence: Sequence[StepEvidence]) -> Tensor:
    """Return which images have NaN or infinity in their attention, bool [B]; they have no score."""
    masses = [mass for step in evidence for mass in (step.attention or {}).values()]
    return torch.stack([~torch.isfinite(mass).flatten(1).all(1) for mass in masses]).any(0)


def scored(name: str, unit: str, evidence: Sequence[StepEvidence], score: Tensor, steps: Sequence[Tensor]) -> Finding:
    """Return a finding of scores [B]; an entropy does not grow with the picture, so the RMS is the score."""
    first, gone = evidence[0], lost(evidence)
    values = tuple(score.masked_fill(gone, math.nan).tolist())
    without_score = [str(image) for image, missing in enumerate(gone.tolist(), 1) if missing]
    images = f"image {', '.join(without_score)} of {len(gone)} has no score: the attention holds NaN or infinity"
    return Finding(
        name,
        scores=values,
        rms=values,
        per_step=tuple(tuple(value.masked_fill(gone, math.nan).tolist()) for value in steps),
        caveat=images if without_score else "",
        unit=unit,
        reference=first.reference,
        sigma=first.sigma,
        timestep=first.timestep,
        prompts=first.prompts,
    )


def without(name: str, unit: str, evidence: Sequence[StepEvidence], status: str) -> Finding:
    """Return a finding that says why there is no score."""
    if not evidence:
        return Finding(name, unit=unit, status=status)
    first = evidence[0]
    return Finding(
        name, unit=unit, status=status, reference=first.reference, sigma=first.sigma, timestep=first.timestep
    )
