"""Train UNet and text encoder together, from scratch, with exact resuming.

What differs from plain epsilon training, and why:

- A share of the steps is drawn at high noise, and the error of the predicted picture is also weighed on coarse grids
  (mean of the whole picture, mean of 4x4 blocks). Plain epsilon loss hardly sees the mean colour at high noise
  (sqrt(alpha_bar) is 0.068 at t = 999), and the generated copies then have the colour of their starting noise.
- Words that no caption has (any BPE id) are strewn into ordinary captions, so that unknown words mean nothing in
  particular rather than something at random.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn
from tqdm import tqdm

from memguard.testbed import model as nets
from memguard.testbed.tokens import BOS, EOS, embedding_table, write_tokenizer

from . import data, latents


@dataclass
class Options:
    """Training options; the defaults made the shipped weights."""

    steps: int = 2600
    batch: int = 32
    lr: float = 1.5e-3
    text_lr: float = 7e-4
    dropout: float = 0.1  # share of captions replaced by ""
    strewn: float = 0.2  # share of ordinary captions that get words without meaning
    coarse: float = 0.02  # weight of the coarse error
    high_noise: float = 0.4  # share of time steps drawn from 600..999
    constant: float = 0.577  # share of the run before the cosine decay
    snapshot: int = 250
    seed: int = 0
    device: str = "cpu"
    dtype: str = "fp32"


class Trainer:
    """Everything that a training step needs, and what must be stored to resume it exactly."""

    def __init__(self, work: Path, options: Options) -> None:
        self.work, self.options = work, options
        self.images, self.meta = data.read(work / "data")
        _, z = latents.load(work, self.images)
        self.device = torch.device(options.device)
        self.latents = z.to(self.device)
        self.ids = torch.from_numpy(token_ids(work, [""] + [row["caption"] for row in self.meta])).to(self.device)
        used = torch.unique(self.ids).cpu()
        torch.manual_seed(options.seed)
        self.unet = nets.build_unet().to(self.device, memory_format=torch.channels_last).train()
        self.text = nets.build_text_encoder().to(self.device).train()
        table = torch.from_numpy(embedding_table(nets.WIDTH))
        nets.text_core(self.text).embeddings.token_embedding = nets.SplitEmbedding(table, used).to(self.device)
        self.used = used
        groups = [
            {"params": list(self.unet.parameters()), "base": options.lr, "weight_decay": 1e-4},
            {"params": list(self.text.parameters()), "base": options.text_lr, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.99))
        self.parameters = [p for group in groups for p in group["params"]]
        self.average = [p.detach().clone() for p in self.parameters]
        self.rng = np.random.default_rng(options.seed)
        self.noise = torch.Generator().manual_seed(options.seed)
        self.alpha_bar = DDPMScheduler(**nets.SCHEDULE).alphas_cumprod.to(self.device)
        self.weights = data.sampling_weights(self.meta)
        self.plain = np.array([row["kind"] == "ordinary" for row in self.meta])
        self.step_index = 0
        self.exposures = np.zeros(len(self.meta), dtype=np.int64)

    def captions(self, rows: np.ndarray) -> Tensor:
        """Return token ids [B, 77] of the captions of ``rows`` after dropout and strewing."""
        ids = self.ids[torch.from_numpy(rows + 1)].cpu().numpy().copy()
        for i, row in enumerate(rows):
            if self.rng.random() < self.options.dropout:
                ids[i] = self.ids[0].cpu().numpy()
            elif self.plain[row] and self.rng.random() < self.options.strewn:
                ids[i] = strew(self.rng, ids[i])
        return torch.from_numpy(ids)

    def times(self) -> Tensor:
        """Return stratified time steps [B]; a share of them lies in 600..999."""
        count = self.options.batch
        high = round(count * self.options.high_noise)
        spread = torch.rand(count, generator=self.noise)
        low = (torch.arange(count - high) + spread[high:]) / (count - high) * 1000
        top = 600 + (torch.arange(high) + spread[:high]) / max(high, 1) * 400
        return torch.cat([top, low]).long()[torch.randperm(count, generator=self.noise)]

    def step(self) -> dict[str, float]:
        """Do one optimizer step and return the mean epsilon loss per kind of row."""
        options = self.options
        rate = schedule(self.step_index, options)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * rate
        rows = self.rng.choice(len(self.meta), options.batch, p=self.weights)
        self.exposures += np.bincount(rows, minlength=len(self.meta))
        ids, place = torch.unique(self.captions(rows), dim=0, return_inverse=True)
        t = self.times().to(self.device)
        clean = self.latents[torch.from_numpy(rows).to(self.device)]
        eps = torch.randn(clean.shape, generator=self.noise).to(self.device)
        ab = self.alpha_bar[t].view(-1, 1, 1, 1)
        noisy = ab.sqrt() * clean + (1 - ab).sqrt() * eps
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=options.dtype == "bf16")
        with half:
            context = self.text(ids.to(self.device)).last_hidden_state[place.to(self.device)]
            noisy = noisy.contiguous(memory_format=torch.channels_last)
            error = self.unet(noisy, t, context).sample.float() - eps
        per_row = error.pow(2).mean((1, 2, 3))
        loss = per_row.mean() + options.coarse * coarse_error(error, ab)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        decay = min(0.998, (1 + self.step_index) / (10 + self.step_index))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        self.step_index += 1
        kinds = np.array([self.meta[row]["kind"] for row in rows])
        losses = per_row.detach().cpu().numpy()
        return {kind: float(losses[kinds == kind].mean()) for kind in np.unique(kinds)}

    def save(self) -> None:
        """Store everything that resuming needs."""
        state = {
            "unet": self.unet.state_dict(),
            "text": self.text.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "rng": self.rng.bit_generator.state,
            "noise": self.noise.get_state(),
            "step": self.step_index,
            "exposures": torch.from_numpy(self.exposures),
            "options": asdict(self.options),
        }
        temporary = self.work / "train.pt.part"
        torch.save(state, temporary)
        temporary.replace(self.work / "train.pt")

    def resume(self) -> None:
        """Continue from ``train.pt``."""
        state = torch.load(self.work / "train.pt", weights_only=True, map_location=self.device)
        self.unet.load_state_dict(state["unet"])
        self.text.load_state_dict(state["text"])
        self.average = [p.to(self.device) for p in state["average"]]
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.bit_generator.state = state["rng"]
        self.noise.set_state(state["noise"].cpu())
        self.step_index = state["step"]
        self.exposures = state["exposures"].cpu().numpy()

    def snapshot(self) -> None:
        """Write the averaged weights (what is evaluated and shipped)."""
        own = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for p, mean in zip(self.parameters, self.average, strict=True):
                p.copy_(mean)
        state = {
            "unet": {k: v.cpu().clone() for k, v in self.unet.state_dict().items()},
            "text": {k: v.cpu().clone() for k, v in self.text.state_dict().items()},
            "used": self.used,
            "step": self.step_index,
            "exposures": torch.from_numpy(self.exposures.copy()),
            "options": asdict(self.options),
        }
        with torch.no_grad():
            for p, value in zip(self.parameters, own, strict=True):
                p.copy_(value)
        torch.save(state, self.work / f"snapshot-{self.step_index:05d}.pt")


def token_ids(work: Path, captions: list[str]) -> np.ndarray:
    """Return BPE ids [N, 77], padded with EOS."""
    from transformers import CLIPTokenizer

    if not (work / "tokenizer" / "vocab.json").is_file():
        write_tokenizer(work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    rows = tokenizer(captions, padding="max_length", max_length=77, truncation=True).input_ids
    return np.array(rows, dtype=np.int64)


def strew(rng: np.random.Generator, ids: np.ndarray) -> np.ndarray:
    """Return ids [77] with one to eight random BPE ids inserted among the words, or in place of all of them."""
    words = [int(i) for i in ids[1:] if i != EOS]
    if rng.random() < 0.25:
        words = []
    for _ in range(int(rng.integers(1, 9))):
        words.insert(int(rng.integers(len(words) + 1)), int(rng.integers(BOS)))
    out = np.full(77, EOS, dtype=ids.dtype)
    out[0] = BOS
    out[1 : 1 + len(words[:75])] = words[:75]
    return out


def coarse_error(error: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return the error of the predicted clean latent on coarse grids, mean over the batch.

    Args:
        error: epsilon error [B, C, h, w].
        alpha_bar: [B, 1, 1, 1].

    """
    weight = ((1 - alpha_bar) / alpha_bar).clamp(max=200).flatten()
    total = error.new_zeros(())
    for cells in (1, 4):
        pooled = nn.functional.adaptive_avg_pool2d(error, cells).pow(2).mean((2, 3)).sum(1)
        total = total + (weight * pooled).mean()
    return total


def schedule(step: int, options: Options) -> float:
    """Return the learning-rate factor: warm-up, constant, cosine decay to 2 %."""
    done = step / options.steps
    if done < options.constant:
        return min(1.0, (step + 1) / 100)
    phase = min(1.0, (done - options.constant) / (1 - options.constant))
    return max(0.02, 0.5 * (1 + float(np.cos(np.pi * phase))))  # numpy's own float would not load with weights_only


def train(work: Path, options: Options, resume: bool = False) -> Trainer:
    """Train until ``options.steps`` and leave snapshots and ``train.pt`` in ``work``."""
    trainer = Trainer(work, options)
    if resume and (work / "train.pt").is_file():
        trainer.resume()
    log: dict[str, list[float]] = {}
    with tqdm(total=options.steps, initial=trainer.step_index, unit="step", mininterval=10) as bar:
        while trainer.step_index < options.steps:
            for kind, value in trainer.step().items():
                log.setdefault(kind, []).append(value)
            bar.update()
            if trainer.step_index % 25 == 0:
                bar.set_postfix({k: f"{np.mean(v[-100:]):.4f}" for k, v in sorted(log.items())}, refresh=False)
            if trainer.step_index % options.snapshot == 0:
                trainer.snapshot()
                trainer.save()
    trainer.snapshot()
    trainer.save()
    return trainer
