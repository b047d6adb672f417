"""What filters of a training keep a model from memorizing, at equal steps, and what they cost.

The test bed's network goes on with its training on pictures that are drawn here: half of each batch are a few
duplicates, the other half fresh ordinary pictures. Three shapes of each duplicate are in no caption, so that a copy is
told from a picture that follows its caption. Thresholds are the 95th percentile of ordinary samples before the training
begins; nothing is tuned on the duplicates.

    PYTHONPATH=. python benchmarks/training_filters.py [--steps 200] [--arms none norm ...] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.false_positives import interval
from memguard import testbed
from memguard.training import Captions, EntropyFilter, Meter, NormFilter, weighted
from testbed import loras

DUPLICATES, HELD, BATCH, RATE = 12, 64, 16, 5e-4
SOURCE = 4711  # of the pictures; none that a LoRA of testbed/loras.py sees
HIGH = 600  # timestep from which samples are judged
COPY = 0.8  # correlation above which a picture is a copy
ARMS = ("none", "norm", "norm, scaled", "entropy", "random tokens")


class Bed:
    """The test bed with the pictures of one arm."""

    def __init__(self, fresh: int) -> None:
        self.pipe = testbed.pipeline()
        self.unet = self.pipe.unet.train().requires_grad_(True)
        self.alphas = self.pipe.scheduler.alphas_cumprod
        made = [loras.picture(seed, SOURCE) for seed in range(DUPLICATES + HELD + fresh)]
        self.captions = [caption for _, caption in made]
        drawn = torch.from_numpy(np.stack([picture for picture, _ in made]))
        self.pictures = drawn.permute(0, 3, 1, 2) / 127.5 - 1  # [N, 3, 128, 128] in -1..1
        with torch.no_grad():
            parts = [self.pipe.vae.encode(part) for part in self.pictures.split(32)]
            first = getattr(parts[0], "latents", None)
            found = [each.latents if first is not None else each.latent_dist.mode() for each in parts]
        self.latents = torch.cat(found) * self.pipe.vae.config.scaling_factor
        self.texts: dict[str, Tensor] = {}

    def text(self, captions: list[str]) -> Tensor:
        """Return encoded captions, [B, 77, d]."""
        with torch.no_grad():
            for caption in captions:
                if caption not in self.texts:
                    self.texts[caption] = self.pipe.encode_prompt([caption], "cpu", 1, False)[0]
        return torch.cat([self.texts[caption] for caption in captions])

    def noisy(self, latents: Tensor, steps: Tensor, noise: Tensor) -> Tensor:
        """Return noisy latents."""
        alpha = self.alphas[steps].view(-1, 1, 1, 1)
        return alpha.sqrt() * latents + (1 - alpha).sqrt() * noise

    def loss(self, rows: list[int], timestep: int, generator: torch.Generator) -> Tensor:
        """Return the losses of pictures at a timestep, for the meter."""
        latents = self.latents[rows]
        noise = torch.randn(latents.shape, generator=generator)
        steps = torch.full((len(rows),), timestep)
        found = self.unet(self.noisy(latents, steps, noise), steps, self.text([self.captions[i] for i in rows])).sample
        return (found - noise).pow(2)


def thresholds(bed: Bed, share: float = 0.95) -> tuple[float, float]:
    """Return the percentiles of ordinary samples' noise gap and entropy, before the training."""
    norm, entropy = NormFilter(1, bed.text([""])), EntropyFilter(1)
    generator = torch.Generator().manual_seed(1)
    held = list(range(DUPLICATES, DUPLICATES + HELD))
    with torch.no_grad():
        for rows in (held[i : i + BATCH] for i in range(0, HELD, BATCH)):
            latents = bed.latents[rows]
            steps = torch.randint(HIGH, 1000, (len(rows),), generator=generator)
            x = bed.noisy(latents, steps, torch.randn(latents.shape, generator=generator))
            with entropy.reading(bed.unet):
                predicted = bed.unet(x, steps, bed.text([bed.captions[i] for i in rows])).sample
            entropy(names=rows)
            norm(bed.unet, x, steps, predicted, names=rows)
    found = [np.quantile([entry.highest for entry in each.seen.values()], share) for each in (norm, entropy)]
    return float(found[0]), float(found[1])


def train(bed: Bed, arm: str, steps: int) -> dict[str, Any]:
    """Train one arm; return what it cost."""
    gap, nats = thresholds(bed)
    norm = NormFilter(gap, bed.text([""]), "scale" if "scaled" in arm else "skip", least=HIGH)
    entropy = EntropyFilter(nats)
    vary = Captions("random_tokens", words=sorted({word for each in bed.captions for word in each.split()}))
    generator, rng = torch.Generator().manual_seed(2), np.random.default_rng(3)
    optimizer = torch.optim.AdamW(bed.unet.parameters(), RATE)
    fresh = np.arange(DUPLICATES + HELD, len(bed.captions))
    left_out, began = 0.0, time.process_time()
    for _ in range(steps):
        rows = [*rng.integers(0, DUPLICATES, BATCH // 2), *rng.choice(fresh, BATCH // 2, replace=False)]
        captions = [bed.captions[i] for i in rows]
        text = bed.text([vary(each) for each in captions] if arm == "random tokens" else captions)
        noise = torch.randn(bed.latents[rows].shape, generator=generator)
        at = torch.randint(0, 1000, (BATCH,), generator=generator)
        x, weights = bed.noisy(bed.latents[rows], at, noise), torch.ones(BATCH)
        if arm == "entropy":
            with entropy.reading(bed.unet):
                predicted = bed.unet(x, at, text).sample
            weights = entropy()
        else:
            predicted = bed.unet(x, at, text).sample
            if arm.startswith("norm"):
                weights = norm(bed.unet, x, at, predicted)
        left_out += float((1 - weights)[: BATCH // 2].sum()) / (BATCH // 2) / steps
        optimizer.zero_grad()
        weighted(functional.mse_loss(predicted, noise, reduction="none"), weights).backward()
        optimizer.step()
    return {"seconds": time.process_time() - began, "duplicates left out": left_out, "threshold": gap, "nats": nats}


def measured(bed: Bed) -> dict[str, Any]:
    """Return how many duplicates come out, the ordinary loss, and the meter's gap."""
    bed.unet.eval()
    copies, alike = 0, []
    for first in range(0, DUPLICATES, 6):
        rows = list(range(first, min(first + 6, DUPLICATES)))
        made = bed.pipe(
            [bed.captions[i] for i in rows],
            num_inference_steps=20,
            guidance_scale=5.0,
            generator=torch.Generator().manual_seed(9),
            output_type="pt",
        ).images
        for row, image in zip(rows, made, strict=True):
            pair = torch.stack((image.flatten(), bed.pictures[row].flatten()))
            alike.append(float(torch.corrcoef(pair)[0, 1]))
            copies += alike[-1] > COPY
    held = list(range(DUPLICATES, DUPLICATES + HELD))
    gaps = Meter(bed.loss, [list(range(DUPLICATES))], [held]).measure(0, bed.unet)
    low, high = interval(copies, DUPLICATES)
    return {
        "copied": copies,
        "of": DUPLICATES,
        "low": low,
        "high": high,
        "correlation": float(np.mean(alike)),
        "held loss": float(np.mean([each.held for each in gaps])),
        "duplicates' loss": float(np.mean([each.trained for each in gaps])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--out", type=Path, help="rows as JSON")
    args = parser.parse_args()
    rows = []
    for arm in args.arms:
        torch.manual_seed(0)
        bed = Bed(fresh=BATCH // 2 * 40)
        rows.append({"arm": arm, "steps": args.steps, **train(bed, arm, args.steps), **measured(bed)})
        print(rows[-1], flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
