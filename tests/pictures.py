"""Folders of training pictures as tests make them: a picture with its caption beside it."""

from pathlib import Path

import numpy as np
from PIL import Image


def put(folder: Path, name: str, picture: np.ndarray, caption: str) -> None:
    """Write a picture, uint8 [H, W, 3], and its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(caption)


def drawn(seed: int, side: int) -> np.ndarray:
    """Return a picture of coarse colours, uint8 [side, side, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 5, 3)).astype("uint8")
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
