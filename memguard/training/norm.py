"""Filter by the magnitude of the text-conditional prediction during training (Wen et al., ICLR 2024).

A sample whose noise gap || eps(x_t, caption) - eps(x_t, "") || is above a threshold is about to be memorized, and is
left out of this step. Cost: one more evaluation of each judged sample without gradient, about a third of a step's
forward and backward. What differs from the official code: the gap is an RMS over the latent elements, so that one
threshold serves all sizes (an L2 of 2 on SD1's 64 x 64 latents is .0156); it may be asked at high noise only; samples
may be weighed down and not left out.

Room: the core. May import: memguard.aside, memguard.troubles, torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..aside import aside
from ..troubles import Refused
from .log import Log
from .weights import Above, Filter


class NormFilter(Filter):
    """Weighs samples by the noise gap of the step's own prediction.

    Args:
        threshold: RMS of the gap, in the units of what the network predicts.
        empty: the encoded empty caption, [1, tokens, d].
        above: what happens above the threshold, "skip" or "scale".
        least: timestep below which samples are not judged and cost nothing; the gap tells most at high noise.
        log: takes scores step by step.

    """

    NAME = "text_noise_norm"

    def __init__(
        self, threshold: float, empty: Tensor, above: Above = "skip", least: int = 0, log: Log | None = None
    ) -> None:
        super().__init__(threshold, above, log)
        if empty.ndim != 3 or len(empty) != 1:
            raise Refused(f"empty is of shape {list(empty.shape)}; give the encoded empty caption, [1, tokens, d]")
        self.empty, self.least = empty.detach(), least
        self.rows = 0  # of the network that judging cost

    def __call__(
        self,
        network: Any,
        noisy: Tensor,
        timesteps: Tensor,
        predicted: Tensor,
        names: Sequence[Any] | None = None,
        **more: Any,
    ) -> Tensor:
        """Return the weights of a batch, [B].

        Args:
            network: that is trained, as the loop calls it; it is in the mode that the loop has put it into, so dropout
                of its own adds to the gap.
            noisy: its input, [B, C, h, w].
            timesteps: [B], or one for all.
            predicted: what it has predicted with the captions, [B, C, h, w]; its graph is left alone.
            names: of the pictures.
            more: what else the loop gives to the network, such as ``added_cond_kwargs``; tensors of B rows are cut to
                the judged samples.

        """
        steps = timesteps.expand(len(noisy)) if timesteps.ndim else timesteps.repeat(len(noisy))
        scores = torch.full((len(noisy),), math.nan, device=noisy.device)
        judged = (steps >= self.least).nonzero().flatten()
        if len(judged):
            text = self.empty.to(device=noisy.device, dtype=predicted.dtype)
            rest = {name: _rows(value, judged, len(noisy)) for name, value in more.items()}
            with torch.no_grad(), aside(network, noisy):
                found = network(noisy[judged], steps[judged], text.expand(len(judged), -1, -1), **rest)
            without = getattr(found, "sample", found)
            without = without[0] if isinstance(without, tuple) else without
            gap = predicted.detach()[judged].float() - without.float()
            scores[judged] = gap.flatten(1).pow(2).mean(1).sqrt()
            self.rows += len(judged)
        return self.weigh(scores, names)


def _rows(value: Any, judged: Tensor, count: int) -> Any:
    """Return the judged samples' part of an argument."""
    if isinstance(value, Tensor):
        return value[judged] if value.ndim and len(value) == count else value
    return {name: _rows(each, judged, count) for name, each in value.items()} if isinstance(value, dict) else value
