"""Does a LoRA copy less, and still do its work, once directions that the base does not share are taken out of it?

A LoRA is trained on 24 pictures of one look for so long that it copies them; what it is for is the look, which 96 other
pictures share. Each layer's change is split into singular directions, and each direction compared with the leading
singular directions of the base's own weight (spectral alignment, the idea of arXiv 2605.10439; its form here is ours,
since the paper's numbers were not at hand). Rules:

    scale S         the whole LoRA at strength S: what any loader can do
    hard F Z        keeps directions whose alignment with the leading F of the base is Z times that of a random one
    soft F Z        weighs each by its alignment / Z, at most 1
    opposite F Z    keeps the others

A rule is chosen on the first twelve pictures and 48 others, and reported on the second twelve and 48 more.

    PYTHONPATH=. python benchmarks/lora_alignment.py train FOLDER
    PYTHONPATH=. python benchmarks/lora_alignment.py measure FOLDER/look-epoch020.safetensors --half second
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from memguard import testbed
from memguard.audit.likeness import FLOOR, Likeness
from memguard.hosts.diffusers import loras as files
from testbed import loras

HALF, OTHERS, FIRST = 12, 48, 5000  # pictures of a half, others of a half, the first other's seed
TIMESTEPS = (100, 300, 500, 700, 900)
FRAME, COLOUR = 8, (30, 25, 60)
EPOCHS = 40
RULES = (
    "scale 1",
    "scale .75",
    "scale .6",
    "scale .5",
    "hard .0625 2",
    "soft .0625 4",
    "soft .125 4",
    "opposite .125 2",
)

Split = tuple[Tensor, Tensor, Tensor]  # left directions [out, r], strengths [r], right directions [r, in]


def picture(seed: int, source: int = 7321) -> tuple[np.ndarray, str]:
    """Return a picture of testbed/loras.py as a negative with its colours exchanged, darker to the top, in a frame."""
    drawn, caption = loras.picture(seed, source)
    look = (255 - np.asarray(drawn, np.float32)[..., [2, 0, 1]]) * np.linspace(0.55, 1, 128)[:, None, None]
    look[:FRAME] = look[-FRAME:] = COLOUR
    look[:, :FRAME] = look[:, -FRAME:] = COLOUR
    return look.clip(0, 255).astype("uint8"), caption


class Look(loras.Trainer):
    """A LoRA of the look."""

    picture = staticmethod(picture)


def train(folder: Path) -> None:
    """Write the LoRA every five epochs."""
    trainer = Look("all")
    for epoch in range(1, EPOCHS + 1):
        trainer.pace(epoch, EPOCHS)
        errors = torch.cat([trainer.step() for _ in range(loras.EPOCH // loras.BATCH)])
        print(f"epoch {epoch}: error {errors.mean():.4f}", flush=True)
        if epoch % 5 == 0:
            trainer.save(folder, f"look-epoch{epoch:03d}", torch.float32)


class Measured:
    """The test bed with a LoRA on it, changed by a rule."""

    def __init__(self, path: Path, half: int) -> None:
        self.pipe = testbed.pipeline()
        self.pipe.set_progress_bar_config(disable=True)
        lora = files.fitted(self.pipe, files.read(path), path.name)
        self.weights = {name: self._layer(name).weight.detach().clone() for name in lora.factors}
        self.bases = {
            name: torch.linalg.svd(weight.flatten(1), full_matrices=False) for name, weight in self.weights.items()
        }
        self.changes = {name: split(*factors) for name, factors in lora.factors.items()}
        own = [picture(seed) for seed in range(2 * HALF)]
        first = FIRST + half * OTHERS
        self.others = [picture(seed) for seed in range(first, first + OTHERS)]
        self.captions = [caption for _, caption in own[half * HALF : (half + 1) * HALF]]
        self.places = np.arange(HALF) + half * HALF
        self.likeness = Likeness([Image.fromarray(drawn) for drawn, _ in own])

    def _layer(self, name: str) -> torch.nn.Module:
        return self.pipe.unet.get_submodule(name.removeprefix("unet."))

    @torch.no_grad()
    def put(self, rule: str) -> float:
        """Put the LoRA on by a rule; return the share of its energy that is left."""
        left = whole = 0.0
        for name, (u, s, v) in self.changes.items():
            basis, _, transposed = self.bases[name]
            kept = strengths(rule, (u, s, v), basis, transposed)
            left, whole = left + float(kept.square().sum()), whole + float(s.square().sum())
            weight = self.weights[name]
            self._layer(name).weight.copy_(weight + ((u * kept) @ v).reshape(weight.shape))
        return left / whole

    @torch.no_grad()
    def copied(self) -> tuple[int, float]:
        """Return how many of the half's pictures come out of their captions, and the mean likeness."""
        generators = [torch.Generator().manual_seed(0) for _ in self.captions]
        steps = {"num_inference_steps": 8, "guidance_scale": 3.0}
        made = self.pipe(self.captions, generator=generators, **steps).images
        own = self.likeness.of(made)[np.arange(HALF), self.places]
        return int((own >= FLOOR).sum()), float(own.mean())

    @torch.no_grad()
    def loss(self) -> float:
        """Return the error on other pictures of the look, on the same noise for all rules."""
        pixels = torch.from_numpy(np.stack([drawn for drawn, _ in self.others])).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = self.pipe.vae.encode(pixels).latents * self.pipe.vae.config.scaling_factor
        text = self.pipe.encode_prompt([caption for _, caption in self.others], "cpu", 1, False)[0]
        generator, errors = torch.Generator().manual_seed(7), []
        for t in TIMESTEPS:
            noise, alpha = torch.randn(latents.shape, generator=generator), self.pipe.scheduler.alphas_cumprod[t]
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
            errors.append((self.pipe.unet(noisy, torch.tensor(t), text).sample - noise).square().mean())
        return float(torch.stack(errors).mean())


def split(down: Tensor, up: Tensor) -> Split:
    """Return the singular directions of a layer's change, up down, without ever writing it out."""
    left, a = torch.linalg.qr(up.flatten(1))
    right, b = torch.linalg.qr(down.flatten(1).T)
    u, s, v = torch.linalg.svd(a @ b.T)
    return left @ u, s, v @ right.T


def strengths(rule: str, change: Split, basis: Tensor, transposed: Tensor) -> Tensor:
    """Return what a rule leaves of each direction's strength, [r]."""
    (u, s, v), (kind, *numbers) = change, rule.split()
    if kind == "scale":
        return s * float(numbers[0])
    share, level = map(float, numbers)
    leading = max(1, round(share * min(len(basis), transposed.shape[1])))
    aligned = (basis[:, :leading].T @ u).square().sum(0) + (transposed[:leading] @ v.T).square().sum(0)
    times = aligned / (leading / len(basis) + leading / transposed.shape[1])  # 1 for a random direction
    kept = {"hard": times >= level, "opposite": times < level, "soft": (times / level).clamp(max=1)}[kind]
    return s * kept


def main() -> None:
    """Train the LoRA, or measure the rules on one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("train", "measure"))
    parser.add_argument("path", type=Path, help="a folder, or the LoRA")
    parser.add_argument("--half", default="first", choices=("first", "second"))
    parser.add_argument("--rules", nargs="+", default=RULES)
    args = parser.parse_args()
    if args.action == "train":
        train(args.path)
        return
    measured = Measured(args.path, ("first", "second").index(args.half))
    for rule in ("scale 0", *args.rules):
        energy = measured.put(rule)
        copied, mean = measured.copied()
        row = {"rule": rule, "copied": copied, "of": HALF, "mean likeness": round(mean, 3)}
        print(json.dumps(row | {"loss of others": round(measured.loss(), 5), "energy": round(energy, 3)}), flush=True)


if __name__ == "__main__":
    main()
