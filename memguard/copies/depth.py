"""Grey pictures of more than eight bits, whose range Pillow's conversion to RGB cuts off: they came out all white."""

from __future__ import annotations

import numpy as np
from PIL import Image

FULL = 65535  # white of 16 bits


def is_deep(image: Image.Image) -> bool:
    """Whether a picture has one channel of more than eight bits: 16 bits, 32-bit whole numbers, or floats."""
    return image.mode.startswith("I") or image.mode == "F"


def grey(image: Image.Image) -> np.ndarray:
    """Return a deep picture as float32 [H, W] in 0..1.

    Whole numbers are those of 16 bits, which older versions of Pillow read as 32 bits, too; floats are of 0..1, as
    TIFF files of scanners and renderers hold them, or else of 0..255. Where a value is beyond that, the highest one is
    white. What is no number is black.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    highest = float(values.max(initial=0.0))
    usual = (1.0, 255.0, float(FULL)) if image.mode == "F" else (float(FULL),)
    white = next((each for each in usual if highest <= each), highest)
    return (values / white).clip(0, 1)


def eight_bits(image: Image.Image) -> Image.Image:
    """Return a deep picture as one of mode L, any other as it is."""
    return Image.fromarray(np.round(grey(image) * 255).astype(np.uint8)) if is_deep(image) else image
