"""What an audit needs of a pipeline: the first-step score of each caption, and the pictures that it gives.

``memguard generate --seed`` makes the same picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ...aside import aside
from ...audit.making import Making, seeds
from ...texts import shortened
from ...troubles import NotFinite
from . import pipes
from .scanning import scan


def scores(pipe: Any, captions: Sequence[str], making: Making) -> list[float | None]:
    """Return the first-step score of each caption (mean text-conditional noise norm), None where there is none."""
    reports = scan(pipe, captions, seed=making.seed, height=making.height, width=making.width)
    return [report.findings[0].score for report in reports]


def generate(pipe: Any, captions: Sequence[str], making: Making) -> Iterator[np.ndarray]:
    """Yield the pictures of each caption, uint8 [images, H, W, 3].

    Args:
        pipe: a diffusers text-to-image pipeline.
        captions: texts.
        making: settings.

    Raises:
        NotFinite: for a caption whose pictures came to NaN.

    """
    module = pipes.text_to_image(pipe)
    given = pipes.known(
        pipe,
        {"num_inference_steps": making.steps, "guidance_scale": making.guidance}
        | pipes.size(pipe, module, making.height, making.width),
    )
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    try:
        for caption, own in zip(captions, seeds(captions, making), strict=True):
            try:
                pictures = _made(pipe, module, caption, own, given)
            except torch.OutOfMemoryError:
                pictures = np.concatenate([_made(pipe, module, caption, [each], given) for each in own])
            if not np.isfinite(pictures).all():
                dtype = next(module.parameters()).dtype
                other = "; try --dtype float32" if dtype != torch.float32 else ", in float32: its weights are too large"
                raise NotFinite(f"the pictures of {shortened(caption)!r} came to NaN{other}")
            yield np.round(pictures * 255).astype(np.uint8)
    finally:
        pipe.set_progress_bar_config(**before)


def _made(pipe: Any, module: Any, caption: str, own: Sequence[int], given: dict[str, Any]) -> np.ndarray:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in own]
    with aside(module):
        return np.asarray(pipe([caption] * len(own), generator=generators, output_type="np", **given).images)
