"""Magnitude of the text-conditional prediction (Wen et al., ICLR 2024, eq. 3).

d_j = || eps(x_t, prompt) - eps(x_t, "") ||_2 over all latent elements of image j; the score is the mean over the first
scored steps. What differs from the official code: scores stay per image (the code reports the mean over images), the
RMS is kept beside the L2 because the L2 grows with the picture, and rows are told apart by role, not by position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..records import Finding, StepEvidence

NAME = "text_noise_norm"
TITLE = "Magnitude of the text-conditional prediction"
NEEDS = frozenset({"noise_pred"})
UNIT = "L2 norm of the noise gap"


def noise_gap(step: StepEvidence) -> Tensor:
    """Return the noise gap of one step, float32 [B, C, ...], zero where not both prompts act."""
    gap = step.noise_cond.float() - step.noise_uncond.float()
    # filled, not multiplied: a host may leave NaN where a prompt does not act, and 0 * NaN is NaN
    return gap if step.coverage is None else gap.masked_fill(~step.coverage.to(gap.device, torch.bool), 0)


def gap_map(step: StepEvidence) -> Tensor:
    """Return the squared noise gap per pixel, float32 [B, h, w], mean over channels."""
    return step.layout.picture(noise_gap(step)).pow(2).mean(1)


def detect(evidence: Sequence[StepEvidence]) -> Finding:
    """Score the collected steps.

    An image without a score (NaN in the prediction, a prompt that does not act, no gap at all) hides no other one.

    Returns:
        A Finding without a verdict; ``status`` says why where no image has a score, ``caveat`` which ones have none.

    """
    if not evidence:
        return Finding(NAME, unit=UNIT, status="no step was recorded")
    first = evidence[0]
    norms, means = [], []
    reasons = [""] * len(first.noise_cond)
    for step in evidence:
        gap = noise_gap(step)
        elements = _elements(step, gap)
        norm = torch.linalg.vector_norm(gap.flatten(1), dim=1)
        for image, (elements_here, norm_here) in enumerate(zip(elements.tolist(), norm.tolist(), strict=True)):
            reasons[image] = reasons[image] or _reason(step, elements_here, norm_here)
        norms.append(norm)
        means.append(norm / elements.sqrt())
    if all(reasons):
        return _without(first, reasons[0])
    lost = torch.tensor([bool(reason) for reason in reasons], device=norms[0].device)

    def kept(values: Tensor) -> tuple[float, ...]:
        return tuple(values.masked_fill(lost, math.nan).tolist())

    return Finding(
        NAME,
        scores=kept(torch.stack(norms).mean(0)),
        rms=kept(torch.stack(means).mean(0)),
        per_step=tuple(kept(norm) for norm in norms),
        unit=UNIT,
        reference=first.reference,
        sigma=first.sigma,
        timestep=first.timestep,
        prompts=first.prompts,
        caveat="; ".join(f"image {n} of {len(reasons)} has no score: {why}" for n, why in enumerate(reasons, 1) if why),
    )


def _reason(step: StepEvidence, elements: float, norm: float) -> str:
    """Return why an image has no score at a step, "" where it has one."""
    if not elements:
        return f"prompt not active at step {step.step}"
    if not math.isfinite(norm):
        return f"the model's prediction at step {step.step} holds NaN or infinity"
    if not norm:
        what = "negative" if step.reference == "negative" else "empty"
        return (
            f"at step {step.step} the prompt and the {what} prompt give the same prediction: they are equal, or the "
            "prompt begins later"
        )
    return ""


def _elements(step: StepEvidence, gap: Tensor) -> Tensor:
    """Return the number of latent elements that count, float32 [B]."""
    if step.coverage is None:
        return gap.new_full((len(gap),), math.prod(gap.shape[1:]))
    covered = step.coverage.to(gap.device, torch.bool).expand(len(gap), 1, *gap.shape[2:])
    return covered.flatten(1).sum(1).to(gap) * gap.shape[1]


def _without(first: StepEvidence, status: str) -> Finding:
    return Finding(
        NAME, unit=UNIT, status=status, reference=first.reference, sigma=first.sigma, timestep=first.timestep
    )
