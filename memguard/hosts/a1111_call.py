"""One call of A1111's denoiser: its rows, its noise level, and the way to make it again.

May import: the WebUI's modules, memguard's core, torch.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from modules.sd_samplers_timesteps import CFGDenoiserTimesteps
from torch import Tensor

from ..aside import aside
from ..mitigations.base import Treatment
from ..mitigations.effect import Effect
from .webui import tokens


@contextmanager
def beside(network: torch.nn.Module) -> Iterator[None]:
    """The block around every evaluation of ours: ``aside``, and the generator of the HyperTile that A1111 brings."""
    tiles = getattr(sys.modules.get("hypertile"), "RNG_INSTANCE", None)
    own = tiles if isinstance(tiles, random.Random) else random.Random()
    before = own.getstate()
    with aside(network):
        try:
            yield
        finally:
            own.setstate(before)


class Call:
    """One call of the denoiser, as ``on_cfg_denoiser`` and ``on_cfg_denoised`` show it."""

    def __init__(self, params: Any) -> None:
        self.denoiser, self.x, self.sigma = params.denoiser, params.x, params.sigma
        self.text, self.reference, self.image_cond = params.text_cond, params.text_uncond, params.image_cond
        self.steps = isinstance(self.denoiser, CFGDenoiserTimesteps)
        extra = self.denoiser.sampler.sampler_extra_args["cond"]
        self.parts = [
            [(n, each.weight) for n, each in enumerate(image, sum(map(len, extra.batch[:i])))]
            for i, image in enumerate(extra.batch)
        ]
        known = self.denoiser.p.sd_model.alphas_cumprod.float()
        self.levels = ((1 - known) / known).sqrt()
        if self.steps:
            self.timestep = float(self.sigma[0])
            self.level = float(self.levels[min(round(self.timestep), len(self.levels) - 1)])
        else:
            self.level = float(self.sigma[0])
            self.timestep = float(self.denoiser.inner_model.sigma_to_t(self.sigma[:1])[0])

    @property
    def rows(self) -> int:
        """The number of the prompt's rows."""
        return sum(map(len, self.parts))

    @property
    def columns(self) -> int:
        """The number of the prompt's columns."""
        text = self.text["crossattn"] if isinstance(self.text, dict) else self.text
        return int(text.shape[1])

    @property
    def total(self) -> int | None:
        """The number of calls that the sampler makes; some make several in each step."""
        return getattr(self.denoiser, "total_steps", None)

    @property
    def alone(self) -> bool:
        """Whether each image has one prompt and not several that are joined by AND."""
        return self.rows == len(self.parts)

    def exchange(self, treatment: Treatment, effect: Effect | None) -> None:
        """Take a treatment's texts; ``effect`` is told of what differs."""
        for name, part, other in (
            ("text", "prompt", treatment.prompt),
            ("reference", "reference", treatment.reference),
        ):
            own = getattr(self, name)
            if other is None or own is None:
                continue
            made = tokens.like(own, other)
            setattr(self, name, made)
            if effect is not None:
                for before, after in zip(tokens.tensors(own), tokens.tensors(made), strict=True):
                    effect.changed(part, before, after)

    def noise(self, x: Tensor, predicted: Tensor) -> Tensor:
        """Return a prediction in units of epsilon."""
        return predicted.float() if self.steps else (x.float() - predicted.float()) / self._scale

    def gap(self, predicted: Tensor) -> Tensor:
        """Return the noise gap of each image, [B, C, h, w], in units of epsilon; zero where a row was left out."""
        uncond = predicted[self.rows :].float()
        made = torch.stack([combined(predicted.float(), part, uncond[i]) for i, part in enumerate(self.parts)])
        return made - uncond if self.steps else (uncond - made) / self.level

    def predicted(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return epsilon as the sampler's kind of prediction."""
        return noise if self.steps else x.float() - noise * self._scale

    @property
    def _scale(self) -> Tensor:
        return self.sigma.float()[:1].reshape(-1, 1, 1, 1)

    def predict(self, text: Any, x: Tensor) -> Tensor:
        """Predict each image once with another text, in units of epsilon."""
        image = self.image_cond[: len(x)]
        cond = {**text, "c_concat": [image]} if isinstance(text, dict) else {"c_crossattn": [text], "c_concat": [image]}
        if self.denoiser.p.sd_model.model.conditioning_key == "crossattn-adm":
            cond = {"c_crossattn": [text], "c_adm": image}
        return self.noise(x, self.denoiser.inner_model(x, self.sigma[: len(x)], cond=cond))


def combined(noise: Tensor, parts: list[tuple[int, float]], uncond: Tensor) -> Tensor:
    """Return what an image's AND sub-prompts predict together, [C, h, w]: their mean by weight.

    Args:
        noise: predictions of all rows, [R, C, h, w].
        parts: row and weight of each sub-prompt.
        uncond: the image's prediction without the prompt, [C, h, w].

    """
    total = sum(weight for _, weight in parts)
    if len(parts) == 1 or total == 0:
        return noise[parts[0][0]]
    return uncond + sum(weight / total * (noise[row] - uncond) for row, weight in parts)
