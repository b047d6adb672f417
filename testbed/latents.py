"""Latents: each 8x8 patch of a picture projected on its four main directions (PCA), unit variance.

The exported autoencoder's encoder computes the same projection, so that training and generation share one space.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PATCH, CHANNELS = 8, 4


def patches(images: np.ndarray) -> np.ndarray:
    """uint8 [N, H, W, 3] -> float32 [N, H/8, W/8, 192] in -1..1."""
    n, height, width, _ = images.shape
    cut = images.reshape(n, height // PATCH, PATCH, width // PATCH, PATCH, 3).transpose(0, 1, 3, 2, 4, 5)
    return cut.reshape(n, height // PATCH, width // PATCH, -1).astype(np.float32) / 127.5 - 1


def fit(images: np.ndarray) -> dict[str, Tensor]:
    """Return the projection: ``basis`` [192, 4] (orthonormal), ``mean`` [192], ``scale`` [4]."""
    flat = patches(images[:: max(1, len(images) // 1500)]).reshape(-1, 3 * PATCH * PATCH).astype(np.float64)
    mean = flat.mean(0)
    _, vectors = np.linalg.eigh(np.cov(flat - mean, rowvar=False))
    basis = vectors[:, ::-1][:, :CHANNELS]
    basis = basis * np.sign(basis.sum(0) + 1e-12)  # eigenvectors have no sign of their own
    scale = ((flat - mean) @ basis).std(0)
    return {k: torch.from_numpy(v.copy()).float() for k, v in {"basis": basis, "mean": mean, "scale": scale}.items()}


def encode(images: np.ndarray, pca: dict[str, Tensor]) -> Tensor:
    """uint8 [N, H, W, 3] -> latents [N, 4, H/8, W/8]."""
    rows = [
        (torch.from_numpy(patches(images[i : i + 256])) - pca["mean"]) @ pca["basis"]
        for i in range(0, len(images), 256)
    ]
    return (torch.cat(rows) / pca["scale"]).permute(0, 3, 1, 2).contiguous()


def decode(latents: Tensor, pca: dict[str, Tensor]) -> np.ndarray:
    """Latents [N, 4, h, w] -> uint8 [N, 8h, 8w, 3], by the transposed projection."""
    n, _, h, w = latents.shape
    flat = (latents.permute(0, 2, 3, 1) * pca["scale"]) @ pca["basis"].T + pca["mean"]
    blocks = flat.reshape(n, h, w, PATCH, PATCH, 3).permute(0, 1, 3, 2, 4, 5).reshape(n, h * PATCH, w * PATCH, 3)
    return ((blocks.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()


def load(work: Path, images: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
    """Return projection and latents of a data folder; compute and store them where they are missing."""
    file = work / "latents.pt"
    if not file.is_file():
        pca = fit(images)
        torch.save({"pca": pca, "latents": encode(images, pca)}, file)
    stored = torch.load(file, weights_only=True)
    return stored["pca"], stored["latents"]
