"""A MODEL with its CLIP and VAE as an audit asks it: pictures of captions by ComfyUI's own sampling, and their scores.

Image i of a caption is the one that a KSampler with seed + i makes from an empty latent, but for rounding, and for
samplers that draw noise of their own.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import numpy as np
import torch
from torch import Tensor

from ... import detectors
from ...aside import aside
from ...audit.making import Making, seeds
from ...texts import shortened
from ...troubles import NotFinite
from .preflight import first_calls
from .tokens import encode

SCORE = "text_noise_norm"
RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")  # of an empty LATENT, in newer ComfyUIs


@dataclass(frozen=True)
class Drawing:
    """See memguard.audit.making.Model.

    Attributes:
        patcher: MODEL.
        conds: caption -> CONDITIONING, with that of "".
        vae: VAE.
        empty: latent of one picture, all 0.
        making: settings.
        sampler: ComfyUI's name of it.
        scheduler: ComfyUI's name of it.
        bar: ComfyUI's progress bar: a unit for each score and each step of a caption's pictures.

    """

    patcher: Any
    conds: Mapping[str, Any]
    vae: Any
    empty: Tensor
    making: Making
    sampler: str
    scheduler: str
    bar: Any

    def scores(self, captions: Sequence[str]) -> list[float | None]:
        """Return the first-step score of each caption, all from the noise of the first seed."""
        asked = [(self.conds[caption], self.making.seed) for caption in captions]
        runs = first_calls(self.patcher, asked, self.conds[""], {"samples": self.empty}, bar=self.bar)
        detect = detectors.get(SCORE).detect
        return [detect(run.evidence).score if run.evidence else None for run in runs]

    def pictures(self, captions: Sequence[str]) -> Iterator[np.ndarray]:
        """Yield the pictures of each caption, uint8 [images, H, W, 3].

        Raises:
            NotFinite: for a caption whose pictures came to NaN.

        """
        for caption, own in zip(captions, seeds(captions, self.making), strict=True):
            try:
                made = self._made(self.conds[caption], own)
            except torch.cuda.OutOfMemoryError:
                made = torch.cat([self._made(self.conds[caption], [each]) for each in own])
            if not made.isfinite().all():
                full = self.patcher.model_dtype() == torch.float32
                other = ", in float32: its weights are too large" if full else "; start ComfyUI with --force-fp32"
                raise NotFinite(f"the pictures of {shortened(caption)!r} came to NaN{other}")
            yield (made.clamp(0, 1) * 255).round().to(torch.uint8).numpy()

    def _made(self, cond: Any, own: Sequence[int]) -> Tensor:
        """Return the pictures of some seeds, float32 [n, H, W, 3] on the CPU."""
        start = self.bar.current

        def step(number: int, *_: Any) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            self.bar.update_absolute(start + min(number + 1, self.making.steps))

        comfy.model_management.throw_exception_if_processing_interrupted()
        with aside(self.patcher.load_device):
            samples = comfy.sample.sample(
                self.patcher,
                torch.cat([comfy.sample.prepare_noise(self.empty, seed) for seed in own]),
                self.making.steps,
                self.making.guidance,
                self.sampler,
                self.scheduler,
                cond,
                self.conds[""],
                self.empty.repeat(len(own), *[1] * (self.empty.ndim - 1)),
                callback=step,
                disable_pbar=True,
                seed=own[0],
            )
            decoded = self.vae.decode(samples).float().cpu()
        self.bar.update_absolute(start + self.making.steps)
        # models of videos give frames: the first is the picture
        return decoded.reshape(len(own), -1, *decoded.shape[-3:])[:, 0, ..., :3]


def encoded(clip: Any, captions: Iterable[str]) -> dict[str, Any]:
    """Return the CONDITIONING of each caption and of the empty one, each encoded once."""
    found = {}
    for caption in dict.fromkeys(("", *captions)):
        comfy.model_management.throw_exception_if_processing_interrupted()
        found[caption] = encode(clip, caption)
    return found


def empty_latent(patcher: Any, latent: dict[str, Any]) -> Tensor:
    """Return a latent of one picture, all 0, of the size that an empty LATENT stands for with this model."""
    ratios = {name: latent[name] for name in RATIOS if name in latent}
    samples = torch.zeros_like(latent["samples"][:1])
    return comfy.sample.fix_empty_latent_channels(patcher, samples, **ratios)
