"""What filters of a training keep a model from memorizing, at equal steps, and what they cost.

The test bed's network goes on with its training, all weights, on pictures that are drawn here: half of each batch are a
few duplicates, the other half ordinary pictures of the same source. Three shapes of each picture are in no caption, so
that a copy is told from a picture that follows its caption. Thresholds are a quantile of held-out pictures' scores, by
noise level, before the training or again and again during it (--moving); nothing is tuned on the duplicates. What is
chosen among settings is to be chosen on the first half of the duplicates and reported on the second.

"chance" leaves out as many samples as the arm before it did, or --rate.

    PYTHONPATH=. python benchmarks/training_filters.py --arms none norm chance --out ROWS.jsonl [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.false_positives import interval
from benchmarks.training_bed import CORRELATION, JUDGES, Arm, Samples, add_arguments, copied, separation
from memguard import testbed
from memguard.training import Captions, Meter, weighted
from testbed import loras
from testbed.train import coarse_error

DUPLICATES, HELD, CONTROLS = 24, 128, 24
BATCH, RATE, HIGH_NOISE, COARSE = 24, 5e-4, 0.4, 0.02
SOURCE = 4711  # of the pictures; none that a LoRA of testbed/loras.py sees
ARMS = ("none", "norm", "entropy", "chance", "random tokens")


class Bed:
    """The test bed with its pictures: duplicates, held-out ones (thresholds, then the loss), ordinary ones."""

    def __init__(self, fresh: int, device: str) -> None:
        self.device, self.pipe = device, testbed.pipeline().to(device)
        self.unet = self.pipe.unet.requires_grad_(True)
        made = [loras.picture(seed, SOURCE) for seed in range(DUPLICATES + HELD + fresh)]
        self.captions = [caption for _, caption in made]
        self.pictures = [picture for picture, _ in made]
        self.duplicates = list(range(DUPLICATES))
        self.halves = self.duplicates[: DUPLICATES // 2], self.duplicates[DUPLICATES // 2 :]
        held = list(range(DUPLICATES, DUPLICATES + HELD))
        self.tuning, self.held = held[: HELD // 2], held[HELD // 2 :]
        self.fresh = np.arange(DUPLICATES + HELD, len(made))
        self.samples = Samples(self._latents(), self.text(self.captions), self.text([""]), self._alphas())

    def text(self, captions: list[str]) -> Tensor:
        """Return encoded captions, [B, 77, d]."""
        parts = [captions[i : i + 128] for i in range(0, len(captions), 128)]
        with torch.no_grad():
            return torch.cat([self.pipe.encode_prompt(part, self.device, 1, False)[0] for part in parts])

    def _alphas(self) -> Tensor:
        return self.pipe.scheduler.alphas_cumprod.to(self.device)

    @torch.no_grad()
    def _latents(self) -> Tensor:
        pixels = torch.from_numpy(np.stack(self.pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts = [self.pipe.vae.encode(part.to(self.device)).latents for part in pixels.split(64)]
        return torch.cat(parts) * self.pipe.vae.config.scaling_factor


class Training:
    """One arm in training."""

    def __init__(self, bed: Bed, arm: Arm, args: argparse.Namespace) -> None:
        self.bed, self.arm, self.args = bed, arm, args
        self.vary = Captions("random_tokens", words=sorted({word for each in bed.captions for word in each.split()}))
        self.optimizer = torch.optim.AdamW(bed.unet.parameters(), RATE)
        self.noise, self.rng = torch.Generator().manual_seed(args.seed), np.random.default_rng(args.seed)
        self.left_out: list[tuple[float, float]] = []  # of duplicates, of ordinary samples, by step
        self.seconds = 0.0
        self.thresholds = arm.tune(bed.unet, bed.tuning, args.share)

    def segment(self, first: int, last: int) -> None:
        """Do steps first..last - 1."""
        self.bed.unet.train()
        # where others use a machine, too, the seconds of the clock say nothing; a device's are not in the processor's
        clock = time.process_time if self.bed.device == "cpu" else time.perf_counter
        self._wait()
        began = clock()
        for step in range(first, last):
            if self.args.moving and step and step % self.args.moving == 0:
                self.arm.tune(self.bed.unet, self.bed.tuning, self.args.share)
            self._step(step)
        self._wait()
        self.seconds += clock() - began
        self.bed.unet.eval()

    def _wait(self) -> None:
        if self.bed.device.startswith("cuda"):
            torch.cuda.synchronize()

    def _step(self, step: int) -> None:
        bed, half = self.bed, BATCH // 2
        rows = [*self.rng.integers(0, DUPLICATES, half), *self.rng.choice(bed.fresh, half, replace=False)]
        text = bed.samples.texts[rows]
        if self.arm.kind == "random tokens":
            text = bed.text([self.vary(bed.captions[i]) for i in rows])
        high = torch.rand(BATCH, generator=self.noise) < HIGH_NOISE
        spread = torch.rand(BATCH, generator=self.noise)
        t = torch.where(high, 600 + 400 * spread, 1000 * spread).long().clamp(max=999).to(bed.device)
        noise = torch.randn(bed.samples.latents[rows].shape, generator=self.noise).to(bed.device)
        predicted, weights = self.arm(bed.unet, bed.samples.noisy(rows, t, noise), t, text)
        error, alphas = predicted - noise, bed.samples.alphas[t].view(-1, 1, 1, 1)
        loss = weighted(error.pow(2), weights)
        loss = loss + COARSE * coarse_error(error * weights.sqrt().view(-1, 1, 1, 1), alphas)
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50, max(0.05, 5 * (1 - step / self.args.steps)))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(bed.unet.parameters(), 1.0)
        self.optimizer.step()
        out = (1 - weights).cpu()
        self.left_out.append((float(out[:half].mean()), float(out[half:].mean())))

    def measured(self) -> dict[str, Any]:
        """Return how many duplicates come out, the losses, and what the filter has left out so far."""
        bed = self.bed
        places = [*bed.duplicates, *bed.held[:CONTROLS]]
        pictures = [Image.fromarray(bed.pictures[i]) for i in places]
        found = copied(bed.pipe, bed.samples.texts[places], bed.samples.empty, pictures)
        above = np.array(found["likeness"]) >= found["floor"]
        row: dict[str, Any] = {"copied": int(above[:DUPLICATES].sum()), "of": DUPLICATES}
        row |= dict(zip(("low", "high"), interval(row["copied"], DUPLICATES), strict=True))
        for name, half in zip(("copied, first half", "copied, second half"), bed.halves, strict=True):
            row[name] = int(above[half].sum())
        row["controls copied"] = int(above[DUPLICATES:].sum())
        row["correlated"] = int((np.array(found["correlation"])[:DUPLICATES] > CORRELATION).sum())
        gaps = Meter(self._loss, [bed.duplicates], [bed.held]).measure(0, bed.unet)
        row["held loss"] = float(np.mean([each.held for each in gaps]))
        row["duplicates' loss"] = float(np.mean([each.trained for each in gaps]))
        shares = np.mean(self.left_out, 0) if self.left_out else np.zeros(2)
        row["duplicates left out"], row["ordinary left out"] = map(float, shares)
        return row | {"seconds": self.seconds, "thresholds": self.thresholds} | found

    def _loss(self, rows: list[int], timestep: int, generator: torch.Generator) -> Tensor:
        return self.bed.samples.loss(self.bed.unet, rows, timestep, generator)

    def separated(self) -> dict[str, Any]:
        """Return by judge and half how well scores tell duplicates from held-out pictures, by noise level."""
        bed, found = self.bed, dict[str, Any]()
        layers = [name for name, _ in bed.unet.named_modules() if name.endswith("attn2")]
        for kind, layer in [("norm", None), *(("entropy", layer) for layer in layers)]:
            arm = Arm(kind, bed.samples, layer=layer)
            halves = [separation(arm, bed.unet, half, bed.held) for half in bed.halves]
            found[f"{kind} {layer}" if layer else kind] = halves
        return {"separation": found}


def run(name: str, rate: float, args: argparse.Namespace) -> float:
    """Train one arm and write its rows; return the share of all samples that it left out."""
    torch.manual_seed(args.seed)
    bed = Bed(args.fresh, args.device)
    arm = Arm(name, bed.samples, args.above, args.layer, rate, args.seed)
    training = Training(bed, arm, args)
    end = args.until or args.steps
    for first in range(0, end, args.every or end):
        last = min(first + (args.every or end), end)
        training.segment(first, last)
        row = {"arm": name, "as": args.before if name == "chance" else "", "rate": rate, "step": last}
        row |= {"steps": args.steps, "seed": args.seed, "device": args.device}
        if name in JUDGES or name == "chance":
            row |= {"share": args.share, "moving": args.moving, "above": args.above, "layer": args.layer}
        if args.every:
            row |= training.measured() | (training.separated() if args.separation else {})
        else:
            row["seconds"] = training.seconds
        with args.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print({k: v for k, v in row.items() if k not in ("likeness", "correlation", "thresholds")}, flush=True)
    args.before = name
    return float(np.mean(training.left_out))


def main() -> None:
    """Run the arms one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, ARMS)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--until", type=int, help="stop after this step of them")
    parser.add_argument("--every", type=int, default=250, help="steps between evaluations; 0 measures time only")
    parser.add_argument("--separation", action="store_true", help="how well scores tell duplicates, by layer and level")
    parser.add_argument("--fresh", type=int, default=1200, help="ordinary pictures")
    parser.add_argument("--out", type=Path, required=True, help="rows as JSON lines, added to the file")
    args = parser.parse_args()
    args.before, rate = "", 0.0
    for name in args.arms:
        rate = run(name, rate if args.rate is None else args.rate, args)


if __name__ == "__main__":
    main()
