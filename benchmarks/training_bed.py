"""What the benchmarks of training share: encoded samples, the arms, how many pictures come out again.

An arm is what decides on each sample of a batch: nothing, a filter of ``memguard.training``, or chance at a filter's
rate. Thresholds are a quantile of ordinary pictures' scores, one for each fifth of the schedule.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from memguard.audit.likeness import FLOOR, Likeness
from memguard.training import EntropyFilter, NormFilter
from memguard.training.weights import Above

LEVELS, WIDTH = (0, 200, 400, 600, 800), 200  # noise levels, in timesteps
JUDGES = ("norm", "entropy")
PART = 96  # rows of an evaluation
INFERENCE = 20  # steps of a generated image
CORRELATION = 0.8  # of pixels, above which a picture is a copy that anyone would see


@dataclass(frozen=True)
class Samples:
    """Encoded pictures and captions.

    Attributes:
        latents: [N, 4, h, w].
        texts: [N, tokens, d].
        empty: the encoded empty caption, [1, tokens, d].
        alphas: of the schedule, [1000].

    """

    latents: Tensor
    texts: Tensor
    empty: Tensor
    alphas: Tensor

    def noisy(self, rows: Sequence[int], t: Tensor, noise: Tensor) -> Tensor:
        """Return noisy latents."""
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        return alpha.sqrt() * self.latents[rows] + (1 - alpha).sqrt() * noise

    def drawn(self, rows: Sequence[int], low: int, high: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Return timesteps low..high - 1, noise and noisy latents of rows; drawn on the CPU, so that devices agree."""
        t = torch.randint(low, high, (len(rows),), generator=generator).to(self.latents.device)
        noise = torch.randn(self.latents[rows].shape, generator=generator).to(self.latents.device)
        return t, noise, self.noisy(rows, t, noise)

    def loss(self, unet: Any, rows: Sequence[int], timestep: int, generator: torch.Generator) -> Tensor:
        """Return the squared errors of pictures at a timestep, for the meter."""
        t, noise, noisy = self.drawn(rows, timestep, timestep + 1, generator)
        return (unet(noisy, t, self.texts[rows]).sample - noise).pow(2)


class Arm:
    """What decides on the samples of a batch.

    Args:
        kind: "norm" and "entropy" judge; "chance" leaves out ``rate`` of the samples; all else leaves out nothing.
        samples: for the empty caption.
        above: what a filter does above its threshold.
        layer: that the entropy is read from.
        rate: of chance.
        seed: of chance.

    """

    def __init__(
        self,
        kind: str,
        samples: Samples,
        above: Above = "skip",
        layer: str | None = None,
        rate: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.kind, self.samples, self.layer, self.rate = kind, samples, layer, rate
        none = dict.fromkeys(LEVELS, 1e9)
        self.norm = NormFilter(none, samples.empty, above)
        self.entropy = EntropyFilter(none, above, layer)
        self._chance = torch.Generator().manual_seed(seed)

    def __call__(
        self, unet: Any, noisy: Tensor, t: Tensor, text: Tensor, names: Sequence[Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the predictions and the samples' weights, [B]."""
        if self.kind == "entropy":
            with self.entropy.reading(unet):
                predicted = unet(noisy, t, text).sample
            return predicted, self.entropy(names, t)
        predicted = unet(noisy, t, text).sample
        if self.kind == "norm":
            return predicted, self.norm(unet, noisy, t, predicted, names=names)
        weights = torch.ones(len(noisy))
        if self.kind == "chance":
            weights = (torch.rand(len(noisy), generator=self._chance) >= self.rate).float()
        return predicted, weights.to(noisy.device)

    @torch.no_grad()
    def scores(self, unet: Any, rows: Sequence[int], draws: int = 2, seed: int = 1) -> dict[int, np.ndarray]:
        """Return scores of samples, ``draws`` of each, by noise level."""
        found = {}
        generator = torch.Generator().manual_seed(seed)
        for level in LEVELS:
            asked = Arm(self.kind, self.samples, layer=self.layer)
            repeated = [(row, draw) for draw in range(draws) for row in rows]
            for part in (repeated[i : i + PART] for i in range(0, len(repeated), PART)):
                places = [row for row, _ in part]
                t, _, noisy = self.samples.drawn(places, level, level + WIDTH, generator)
                asked(unet, noisy, t, self.samples.texts[places], part)
            seen = (asked.norm if self.kind == "norm" else asked.entropy).seen
            found[level] = np.array([seen[each].highest for each in repeated])
        return found

    def tune(self, unet: Any, rows: Sequence[int], share: float) -> dict[int, float]:
        """Set the thresholds to what ``share`` of ordinary samples score above; return them."""
        if self.kind not in JUDGES:
            return {}
        judge = self.norm if self.kind == "norm" else self.entropy
        judge.levels = {k: float(np.quantile(v, 1 - share)) for k, v in self.scores(unet, rows).items()}
        return judge.levels


def add_arguments(parser: argparse.ArgumentParser, arms: Sequence[str]) -> None:
    """Add what every training with arms is asked for."""
    parser.add_argument("--arms", nargs="+", default=arms, choices=arms)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.05, help="of ordinary samples above the thresholds")
    parser.add_argument("--moving", type=int, default=0, metavar="N", help="thresholds are measured every N steps")
    parser.add_argument("--above", default="skip", choices=("skip", "scale"))
    parser.add_argument("--layer", help="that the entropy is read from")
    parser.add_argument("--rate", type=float, help="of chance; otherwise that of the arm before")
    parser.add_argument("--device", default="cpu")


def separation(arm: Arm, unet: Any, repeated: Sequence[int], ordinary: Sequence[int]) -> dict[int, float]:
    """Return by noise level how often a sample of a duplicate scores above one of an ordinary picture (AUC)."""
    high, low = arm.scores(unet, repeated), arm.scores(unet, ordinary)
    found = {}
    for level in LEVELS:
        difference = high[level][:, None] - low[level][None]
        found[level] = round(float((difference > 0).mean() + (difference == 0).mean() / 2), 4)
    return found


def copied(pipe: Any, texts: Tensor, empty: Tensor, pictures: Sequence[Image.Image], images: int = 2) -> dict[str, Any]:
    """Return how alike the nearest image of each caption is to the caption's own picture.

    Args:
        pipe: the pipeline, in evaluation mode.
        texts: the encoded captions, [N, tokens, d].
        empty: the encoded empty caption.
        pictures: their own, [N].
        images: that are made of each caption.

    """
    drawn: list[list[Image.Image]] = []
    for seed in range(images):
        made: list[Image.Image] = []
        for part in texts.split(48):
            made += pipe(
                prompt_embeds=part,
                negative_prompt_embeds=empty.expand(len(part), -1, -1),
                num_inference_steps=INFERENCE,
                guidance_scale=5.0,
                generator=[torch.Generator().manual_seed(1000 * seed + i) for i in range(len(part))],
            ).images
        drawn.append(made)
    likeness, correlation = [], []
    for own, *candidates in zip(pictures, *drawn, strict=True):
        likeness.append(round(float(Likeness([own]).of(candidates).max()), 4))
        correlation.append(round(max(float(np.corrcoef(np.ravel(own), np.ravel(c))[0, 1]) for c in candidates), 4))
    return {
        "likeness": likeness,
        "correlation": correlation,
        "floor": FLOOR,
    }
