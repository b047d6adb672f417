"""What a sampler was started with, and other noise in its place.

Part of the ComfyUI host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..inference import normal


@dataclass(frozen=True)
class Began:
    """What a sampler was started with (SAMPLER_SAMPLE)."""

    sampler: Any
    sigmas: Tensor
    noise: Tensor
    latent: Tensor
    mask: Tensor | None

    def pure(self, guider: Any) -> bool:
        """Whether it starts from nothing but noise."""
        if self.mask is not None or not bool(torch.count_nonzero(self.noise)):
            return False
        return not bool(torch.count_nonzero(self.latent)) or bool(self.sampler.max_denoise(guider, self.sigmas))

    def scaled(self, guider: Any, noise: Tensor) -> Tensor:
        """Return the noisy latents that a sampler makes of noise, as every sampler of ComfyUI does."""
        sigmas, latent = self.sigmas, self.latent
        if torch.is_grad_enabled():
            sigmas, latent = normal(sigmas), normal(latent)
        scaling = guider.inner_model.model_sampling.noise_scaling
        start: Tensor = scaling(sigmas[0], noise.to(self.noise), latent, self.sampler.max_denoise(guider, self.sigmas))
        return start
