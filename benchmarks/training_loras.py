"""LoRAs of 24 pictures, trained with and without filters: which plan of testbed/loras.py copies what, and when.

Thresholds are a quantile of the scores of other pictures of the same source, by noise level, before the training or
again and again during it (--moving). "chance" leaves out as many samples as the arm before it did, or --rate. The files
are for ``memguard audit``; the rows count copies by the audit's own measure of likeness.

    PYTHONPATH=. python benchmarks/training_loras.py FOLDER --plan all --arms none norm chance [--device cuda]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.training_bed import JUDGES, Arm, Samples, add_arguments, copied
from memguard.training import Meter
from testbed import loras

ARMS = ("none", "norm", "entropy", "chance")
TUNING, HELD, FIRST = 64, 64, 100_000  # pictures that no plan holds: for thresholds, for the loss; the first's seed


class Filtered(loras.Trainer):
    """A LoRA in training under an arm."""

    def __init__(self, plan: str, arm: str, rate: float, args: argparse.Namespace) -> None:
        super().__init__(plan, args.seed, args.device)
        drawn = [loras.picture(seed) for seed in range(FIRST, FIRST + TUNING + HELD)]
        latents = torch.cat([self.latents[: loras.COUNT], self.encode([picture for picture, _ in drawn])])
        own = self.texts[1 : 1 + loras.COUNT]
        texts = torch.cat([own, self.embed([caption for _, caption in drawn])])
        self.samples = Samples(latents, texts, self.texts[:1], self.alpha_bar)
        self.tuning = list(range(loras.COUNT, loras.COUNT + TUNING))
        self.held = list(range(loras.COUNT + TUNING, len(latents)))
        self.arm = Arm(arm, self.samples, args.above, args.layer, rate, args.seed)
        self.share, self.moving, self.steps = args.share, args.moving, 0
        self.thresholds = self.arm.tune(self.unet, self.tuning, self.share)
        self.left_out: list[tuple[np.ndarray, np.ndarray]] = []  # the pictures of a step, and what was left out of each

    def predict(self, noisy: Tensor, t: Tensor, texts: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the predictions of a batch and the weights of its samples."""
        if self.moving and self.steps and self.steps % self.moving == 0:
            self.arm.tune(self.unet, self.tuning, self.share)
        self.steps += 1
        predicted, weights = self.arm(self.unet, noisy, t, texts)
        self.left_out.append((rows, 1 - weights.cpu().numpy()))
        return predicted, weights

    def measured(self) -> dict[str, Any]:
        """Return how many of the pictures come out, the losses, and what was left out so far."""
        pictures = [Image.fromarray(loras.picture(seed)[0]) for seed in range(loras.COUNT)]
        own = list(range(loras.COUNT))
        found = copied(self.pipe, self.samples.texts[own], self.samples.empty, pictures)
        gaps = Meter(self._loss, [own], [self.held]).measure(0, self.unet)
        rows, out = (np.concatenate(parts) for parts in zip(*self.left_out, strict=True))
        parts = {"often": rows < loras.OFTEN, "rest": (rows >= loras.OFTEN) & (rows < loras.COUNT)}
        parts["others"] = rows >= loras.COUNT
        above = np.array(found["likeness"]) >= found["floor"]
        return {
            "copied": int(above.sum()),
            "copied, often": int(above[: loras.OFTEN].sum()),
            "seen": int((rows < loras.COUNT).sum()) / loras.COUNT,
            "held loss": float(np.mean([each.held for each in gaps])),
            "pictures' loss": float(np.mean([each.trained for each in gaps])),
            **{f"{name} left out": float(out[part].mean()) if part.any() else None for name, part in parts.items()},
            "left out": float(out.mean()),
            "thresholds": self.thresholds,
            **found,
        }

    def _loss(self, rows: list[int], timestep: int, generator: torch.Generator) -> Tensor:
        return self.samples.loss(self.unet, rows, timestep, generator)


def run(arm: str, rate: float, before: str, args: argparse.Namespace) -> float:
    """Train one LoRA, keep files of some epochs and a row of each; return the share of samples that was left out."""
    trainer = Filtered(args.plan, arm, rate, args)
    name = f"{args.plan}-{arm}{'-as-' + before if arm == 'chance' else ''}{args.tag and '-' + args.tag}-s{args.seed}"
    row: dict[str, Any] = {}
    last = args.until or args.epochs
    for epoch in range(1, last + 1):
        trainer.pace(epoch, args.epochs)
        for _ in range(loras.EPOCH // loras.BATCH):
            trainer.step()
        if epoch % args.every == 0 or epoch == last:
            row = {"plan": args.plan, "arm": arm, "as": before if arm == "chance" else "", "rate": rate, "epoch": epoch}
            row |= {"seed": args.seed, "device": args.device, "share": args.share, "moving": args.moving}
            row |= {"above": args.above, "layer": args.layer, "name": name} | trainer.measured()
            with (args.folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print({k: v for k, v in row.items() if k not in ("likeness", "correlation", "thresholds")}, flush=True)
        if epoch in args.keep:
            trainer.save(args.folder / "loras", f"{name}-epoch{epoch:03d}", torch.float16)
    return float(row["left out"])


def main() -> None:
    """Run the arms one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="gets loras/ and a file of rows for each LoRA")
    add_arguments(parser, ARMS)
    parser.add_argument("--plan", default="all", choices=loras.PLANS)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--until", type=int, help="stop after this epoch of them")
    parser.add_argument("--every", type=int, default=5, help="epochs between rows")
    parser.add_argument("--keep", type=int, nargs="*", default=(10, 20, 40), help="epochs whose LoRA is kept")
    parser.add_argument("--tag", default="", help="put into the names of the files")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    before, rate = "", 0.0
    for arm in args.arms:
        rate = run(arm, rate if args.rate is None else args.rate, before, args)
        before = arm if arm in JUDGES else before


if __name__ == "__main__":
    main()
