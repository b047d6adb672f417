"""LoRAs of the test bed whose copies are known by construction: what ``memguard audit`` is measured against.

The pictures are drawn here. A caption says two shapes and their ground; three more shapes lie in every picture that no
caption mentions, so that following a caption and copying its picture are told apart.

    python -m testbed.loras draw FOLDER            # train/ and held/, as trainers have them
    python -m testbed.loras train FOLDER NAME      # FOLDER/loras/NAME-epochNNN.safetensors
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from memguard import testbed

from . import drawing
from .train import coarse_error

COUNT, HELD = 24, 72  # pictures that are trained on, and of the same source that are not
OFTEN = 6  # of the training pictures, those that "few" repeats
BATCH, HIGH_NOISE, DROPOUT = 24, 0.4, 0.1
RANK, RATE = 32, 2e-3
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2"]
# name -> repeats of the first OFTEN pictures, repeats of the other training pictures, other pictures (once each), of
# an epoch; every name sees the same number of pictures
PLANS = {"all": (10, 10, 0), "none": (0.1, 0.1, 576), "few": (24, 0.1, 942)}
EPOCH = 240  # pictures


def picture(seed: int, source: int = 7321) -> tuple[np.ndarray, str]:
    """Return a picture, uint8 [128, 128, 3], and its caption; another source has other pictures of the same kind."""
    rng = np.random.default_rng((source, seed))
    drawn, caption = drawing.two_shapes(rng)
    canvas = Image.fromarray(drawn)
    for _ in range(3):
        shape, colour, fill = (drawing.pick(rng, each) for each in (drawing.SHAPES, drawing.COLOURS, drawing.FILLS))
        drawing.draw(rng, canvas, shape, colour, fill, *rng.uniform(8, 120, 2), rng.uniform(8, 20))
    return np.array(canvas), caption


def draw(folder: Path) -> None:
    """Write the training pictures as kohya's trainers have them, and the held-out ones with a metadata.jsonl."""
    import json

    lines = []
    for seed in range(COUNT + HELD):
        drawn, caption = picture(seed)
        if seed < COUNT:
            place = folder / "train" / ("10_often" if seed < OFTEN else "1_rest")
        else:
            place = folder / "held"
            lines.append({"file_name": f"{seed:03d}.png", "text": caption})
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn).save(place / f"{seed:03d}.png")
        if seed < COUNT:
            (place / f"{seed:03d}.txt").write_text(caption + "\n")
    (folder / "held" / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def weights(name: str) -> np.ndarray:
    """Return the chance of each picture in a batch; the training pictures first, then those that no folder holds."""
    often, rest, others = PLANS[name]
    weight = np.array([often] * OFTEN + [rest] * (COUNT - OFTEN) + [0.1] * others)
    return weight / weight.sum()


class Trainer:
    """One LoRA in training."""

    picture = staticmethod(picture)

    def __init__(self, name: str, seed: int = 0, device: str = "cpu") -> None:
        from peft import LoraConfig

        self.device = device
        self.pipe = testbed.pipeline().to(device)
        self.unet = self.pipe.unet
        torch.manual_seed(seed)
        self.unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
        self.parameters = [p for p in self.unet.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=1e-4)
        self.weights = weights(name)
        seeds = [i if i < COUNT else 1000 + i for i in range(len(self.weights))]
        drawn = [self.picture(i) for i in seeds]
        parts = [drawn[i : i + 64] for i in range(0, len(drawn), 64)]
        self.latents = torch.cat([self.encode([each for each, _ in part]) for part in parts])
        self.texts = torch.cat([self.embed([""]), *(self.embed([text for _, text in part]) for part in parts)])
        self.rng, self.noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
        self.alpha_bar = self.pipe.scheduler.alphas_cumprod.to(device)

    @torch.no_grad()
    def encode(self, drawn: list[np.ndarray]) -> Tensor:
        """Return the latents [N, 4, 16, 16] of pictures."""
        pixels = torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float().to(self.device) / 127.5 - 1
        return self.pipe.vae.encode(pixels).latents * self.pipe.vae.config.scaling_factor

    @torch.no_grad()
    def embed(self, texts: list[str]) -> Tensor:
        """Return what the UNet reads of captions, [N, 77, width]."""
        return self.pipe.encode_prompt(texts, self.device, 1, False)[0]

    def predict(self, noisy: Tensor, t: Tensor, texts: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return the predictions of a batch and its samples' weights, [B]; a filter of the training is put here."""
        return self.unet(noisy, t, texts).sample, torch.ones(len(rows), device=noisy.device)

    def step(self) -> Tensor:
        """Do one step on BATCH pictures; return the epsilon error of each training picture that was in it."""
        rows = self.rng.choice(len(self.weights), BATCH, p=self.weights)
        texts = np.where(self.rng.random(BATCH) < DROPOUT, 0, rows + 1)
        high = round(BATCH * HIGH_NOISE)
        spread = torch.rand(BATCH, generator=self.noise)
        t = torch.cat([600 + 400 * spread[:high], 1000 * spread[high:]]).long().to(self.device)
        clean = self.latents[rows]
        eps = torch.randn(clean.shape, generator=self.noise).to(self.device)
        ab = self.alpha_bar[t].view(-1, 1, 1, 1)
        predicted, weights = self.predict(ab.sqrt() * clean + (1 - ab).sqrt() * eps, t, self.texts[texts], rows)
        error = predicted - eps
        per_row = error.pow(2).mean((1, 2, 3))
        loss = (weights * per_row).mean() + 0.02 * coarse_error(error * weights.sqrt().view(-1, 1, 1, 1), ab)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return per_row.detach().cpu()[torch.from_numpy(rows < COUNT)]

    def pace(self, epoch: int, epochs: int) -> None:
        """Set the learning rate of an epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * min(1.0, epoch / 2, max(0.05, 1.25 * (1 - epoch / epochs)))

    def save(self, folder: Path, name: str, dtype: torch.dtype = torch.float32) -> None:
        """Write the LoRA as diffusers does."""
        from peft.utils import get_peft_model_state_dict

        kept = get_peft_model_state_dict(self.unet).items()
        state: dict[str, Any] = {key: value.to("cpu", dtype, copy=True) for key, value in kept}
        self.pipe.save_lora_weights(folder, unet_lora_layers=state, weight_name=f"{name}.safetensors")


def train(folder: Path, name: str, epochs: int, every: int) -> None:
    """Train one plan and keep a LoRA every few epochs; an epoch is EPOCH pictures."""
    import time

    trainer, started = Trainer(name), time.time()
    for epoch in range(1, epochs + 1):
        trainer.pace(epoch, epochs)
        errors = torch.cat([trainer.step() for _ in range(EPOCH // BATCH)])
        print(f"{name} epoch {epoch}: error {errors.mean():.4f}, {time.time() - started:.0f} s", flush=True)
        if epoch % every == 0:
            trainer.save(folder / "loras", f"{name}-epoch{epoch:03d}")


def main() -> None:
    """Run one action."""
    parser = argparse.ArgumentParser(prog="python -m testbed.loras", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("draw").add_argument("folder", type=Path)
    training = actions.add_parser("train")
    training.add_argument("folder", type=Path)
    training.add_argument("name", choices=PLANS)
    training.add_argument("--epochs", type=int, default=40)
    training.add_argument("--every", type=int, default=5)
    args = parser.parse_args()
    if args.action == "draw":
        draw(args.folder)
    else:
        train(args.folder, args.name, args.epochs, args.every)


if __name__ == "__main__":
    main()
