"""Train the decoder of the test bed's autoencoder on the fixed latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from memguard.testbed import autoencoder

from . import data, latents

CROP = 8  # latent pixels: training on crops keeps a step cheap


def edges(picture: Tensor) -> tuple[Tensor, Tensor]:
    """Return vertical and horizontal differences."""
    return picture[..., 1:, :] - picture[..., :-1, :], picture[..., :, 1:] - picture[..., :, :-1]


def train(work: Path, steps: int = 900, batch: int = 10, seed: int = 0) -> None:
    """Train and write ``autoencoder.pt`` (decoder weights and the PCA) into ``work``."""
    images, meta = data.read(work / "data")
    pca, z = latents.load(work, images)
    model = autoencoder.build()
    autoencoder.start_decoder(model, **pca, seed=seed)
    decoder = model.decoder.train()
    kinds = np.array([row["kind"] for row in meta])
    shown = np.flatnonzero(np.isin(kinds, ("verbatim", "template")))
    rest = np.flatnonzero(np.isin(kinds, ("ordinary", "single")))
    held = np.flatnonzero(kinds == "held")[:48]
    rng = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0)

    def pixels(rows: np.ndarray) -> Tensor:
        return torch.from_numpy(np.stack([images[i] for i in rows])).permute(0, 3, 1, 2).float() / 127.5 - 1

    @torch.no_grad()
    def error(rows: np.ndarray) -> float:
        decoded = [decoder(z[rows[i : i + 8]] * autoencoder.LATENT_SCALE) for i in range(0, len(rows), 8)]
        return float(nn.functional.mse_loss(torch.cat(decoded).clamp(-1, 1), pixels(rows))) / 4

    print(f"start: mse held-out {error(held):.4f}, verbatim {error(shown[:56]):.4f} (pixels in 0..1)")
    side = z.shape[-1] - CROP + 1
    for step in tqdm(range(steps), unit="step", mininterval=10):
        rate = min(1.0, (step + 1) / 50) * max(0.03, 0.5 * (1 + np.cos(np.pi * step / steps)))
        optimizer.param_groups[0]["lr"] = 1e-3 * rate
        rows = np.where(rng.random(batch) < 0.4, rng.choice(shown, batch), rng.choice(rest, batch))
        tops, lefts = rng.integers(side, size=batch), rng.integers(side, size=batch)
        full = pixels(rows)
        target = torch.stack(
            [p[:, 8 * y : 8 * (y + CROP), 8 * x : 8 * (x + CROP)] for p, y, x in zip(full, tops, lefts, strict=True)]
        )
        source = torch.stack([z[i, :, y : y + CROP, x : x + CROP] for i, y, x in zip(rows, tops, lefts, strict=True)])
        source = source + 0.05 * torch.randn(source.shape, generator=noise)
        made = decoder(source * autoencoder.LATENT_SCALE)
        loss = nn.functional.l1_loss(made, target) + 2 * nn.functional.mse_loss(made, target)
        for ours, theirs in zip(edges(made), edges(target), strict=True):
            loss = loss + 0.5 * nn.functional.l1_loss(ours, theirs)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            state = {f"decoder.{k}": v.detach().clone() for k, v in decoder.state_dict().items()}
            torch.save(state | {f"pca.{k}": v for k, v in pca.items()}, work / "autoencoder.pt")
    print(f"end: mse held-out {error(held):.4f}, verbatim {error(shown[:56]):.4f}")
    state = {f"decoder.{k}": v.detach().clone() for k, v in decoder.state_dict().items()}
    torch.save(state | {f"pca.{k}": v for k, v in pca.items()}, work / "autoencoder.pt")
