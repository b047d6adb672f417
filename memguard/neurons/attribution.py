"""First-order attribution: what each blocked neuron contributes to the effect, all neurons in one backward pass.

A gate stands at every neuron: 0 at those of a blocked set, 1 elsewhere. The derivative of the MS-SSIM between the
noise differences without and with blocking with respect to a gate says how much of the memory comes back with the
neuron: the larger, the more it is needed in the set. It is the mean over a few pictures, each with a forward and a
backward pass.

Why not with all gates at 1: there the MS-SSIM is at its maximum and has no derivative; that of the noise gap ranks
neurons worse than their z-score does (docs/evidence/neurons.md).

May import: torch, memguard.neurons.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .evaluation import Blocked, Trials, difference
from .msssim import ms_ssim
from .probe import NoGradient

SCALE = 2.0**12  # of the loss: half-precision gradients of single neurons would fall below what float16 can hold
FLOOR = 1e-4  # of a scale of MS-SSIM


def gate_gradients(trials: Trials, blocked: Blocked, images: Sequence[int]) -> dict[str, Tensor]:
    """Return the attribution of every neuron, layer -> float32 [width] on the CPU.

    Args:
        trials: the prompt.
        blocked: neurons whose gates are closed (stand at the factor of blocked neurons).
        images: the pictures; each costs a row forward and a row backward.

    Raises:
        NoGradient: if gradients cannot pass the model's weights, or hold NaN or infinity.

    """
    probe, masks = trials.probe, trials.masks([blocked])
    before = trials.unblocked
    open_ = {name: torch.ones(1, width, device=trials.x.device) for name, width in probe.layers.items()}
    gates = {name: masks.get(name, gate).requires_grad_() for name, gate in open_.items()}
    found = {name: torch.zeros(width) for name, width in probe.layers.items()}
    with probe.gradients(gates) as cost:
        for image in images:
            if trials.cancel is not None:
                trials.cancel()
            x, kept = trials.x[image : image + 1], before[image : image + 1]
            for scale in (SCALE, 1.0):
                with torch.enable_grad():
                    noise = probe.noise(x, trials.t, {})
                    score = ms_ssim(kept, difference(noise, x), floor=FLOOR).sum()
                    gradients = torch.autograd.grad(score * scale, list(gates.values()))
                probe.rows.backward += cost
                if all(bool(torch.isfinite(g).all()) for g in gradients):
                    break
            else:
                raise NoGradient("the gradient holds NaN or infinity")
            for name, gradient in zip(gates, gradients, strict=True):
                found[name] += gradient[0].float().cpu() / scale / len(images)
    return found
