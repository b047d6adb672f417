"""First-order attribution: what each blocked neuron contributes to the effect, all neurons in one backward pass.

A gate stands at every neuron: nearly closed at those of a blocked set, open elsewhere. The derivative of the
MS-SSIM between the noise differences without and with blocking with respect to a gate says how much of the memory
comes back with the neuron: the larger, the more it is needed in the set. The search takes the mean over a few
pictures, at gates of 0 and .25 in turn: the slope at 0 alone misleads where the neurons saturate.

Why not with all gates at 1: there the MS-SSIM is at its maximum and has no derivative; that of the noise gap ranks
neurons worse than their z-score does (docs/evidence/neurons.md).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .evaluation import Blocked, Trials, difference
from .msssim import ms_ssim
from .probe import NoGradient

GATES = (0.0, 0.25)
SCALE = 2.0**12  # of the loss: half-precision gradients of single neurons would fall below what float16 can hold
FLOOR = 1e-4  # of a scale of MS-SSIM


def gate_gradients(trials: Trials, blocked: Blocked, image: int, gate: float) -> dict[str, Tensor]:
    """Return the attribution of every neuron on one picture, layer -> float32 [width] on the CPU.

    Costs a row forward and a row backward.

    Args:
        trials: the prompt.
        blocked: neurons whose gates are not open.
        image: the picture.
        gate: where these stand, from 0 (the factor of blocked neurons) to 1 (open).

    Raises:
        NoGradient: if gradients cannot pass the model's weights, or hold NaN or infinity.

    """
    probe, masks = trials.probe, trials.masks([blocked])
    opened = {name: torch.ones(1, width, device=trials.x.device) for name, width in probe.layers.items()}
    gates = {name: torch.lerp(masks.get(name, one), one, gate).requires_grad_() for name, one in opened.items()}
    x, before = trials.x[image : image + 1], trials.unblocked[image : image + 1]
    with probe.gradients(gates) as cost:
        for scale in (SCALE, 1.0):
            with torch.enable_grad():
                after = difference(probe.noise(x, trials.t, {}), x)
                score = ms_ssim(before, after, floor=FLOOR).sum()
                gradients = torch.autograd.grad(score * scale, list(gates.values()))
            probe.rows.backward += cost
            if all(bool(torch.isfinite(g).all()) for g in gradients):
                return {name: g[0].float().cpu() / scale for name, g in zip(gates, gradients, strict=True)}
    raise NoGradient("the gradient holds NaN or infinity")
