"""The maps of a run as the page gets them: bytes per pixel with their range, and a small preview of the picture.

Part of the ComfyUI host.
"""

from __future__ import annotations

import base64
import io
import logging
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...records import Attribution, Report
from .latents import store

log = logging.getLogger("memguard")

PREVIEW = 256  # pixels on the longer side, at most
WORD = "word "  # "word 3" is the map of the attribution's span 3


def answer(run: str, user: str = "") -> dict[str, Any] | None:
    """Return the maps of a user's run as plain values for JSON, its first image's; None where none are kept."""
    kept = store.maps_of(run)
    if kept is None or kept.owner != user:
        return None
    rows = []
    for name, values in kept.maps.items():
        number = name.removeprefix(WORD)
        low, high = kept.ranges[name]
        rows.append(
            {
                "name": name,
                "span": int(number) if name != number and number.isdecimal() else None,
                "low": low,
                "high": high,
                "data": base64.b64encode(values[0].numpy().tobytes()).decode("ascii"),
            }
        )
    return {"run": run, "size": list(kept.size), "maps": rows, "preview": preview(kept.latent, kept.latent_format)}


def chosen(report: Report, show: str, word: str = "") -> tuple[Tensor, str]:
    """Return a map of a run, float32 [B, h, w], and what it shows.

    Args:
        report: of the run.
        show: "bright_ending", "noise_gap" or "word".
        word: for "word": as the prompt has it; "" takes the one that weighs most.

    Raises:
        ValueError: if there is none, with the reason and the remedy.

    """
    if show == "noise_gap":
        if report.noise_gap_map is None:
            why = next((f.status for f in report.findings if f.status != "ok"), "nothing was measured")
            raise ValueError(f"no map, because {why}")
        return report.noise_gap_map.float(), "noise gap, last step"
    if report.attribution is None:
        raise ValueError(
            f"no map {show!r}, because the run was not explained; connect clip to MemGuard, and set explain to always "
            "where no run is flagged"
        )
    index = _span(report.attribution, word) if show == "word" else None
    kept = store.maps_of(report.run)
    name = show if index is None else f"{WORD}{index}"
    if kept is None or name not in kept.maps:
        known = ", ".join(kept.maps) if kept is not None else "none"
        raise ValueError(f"no map {name!r} of this run is kept (there are: {known}); UNets have them, run it again")
    label = "end of prompt, last step" if index is None else f'word "{report.attribution.spans[index].text}"'
    return kept.unpacked(name), label


def _span(attribution: Attribution, word: str) -> int:
    words = [i for i, span in enumerate(attribution.spans) if span.group == "word" and span.columns]
    if not word.strip() and words:
        return max(words, key=lambda i: attribution.weights[i])
    same = [i for i in words if attribution.spans[i].text.casefold() == word.strip().casefold()]
    if not same:
        said = ", ".join(attribution.spans[i].text for i in words)
        raise ValueError(f"word is {word!r}, and the prompt has: {said}")
    return same[0]


def preview(latent: Tensor | None, latent_format: Any) -> str | None:
    """Return a PNG as base64, one pixel per latent pixel: ComfyUI's latent2rgb, without any decoder.

    None where the format has no such colours, or where a format of an unknown kind fails.
    """
    if latent is None or getattr(latent_format, "latent_rgb_factors", None) is None:
        return None
    try:
        picture = Image.fromarray(_pixels(latent.float(), latent_format).numpy())
        picture.thumbnail((PREVIEW, PREVIEW), Image.Resampling.BILINEAR)
        file = io.BytesIO()
        picture.save(file, "PNG")
    except Exception as error:
        log.warning("no preview of the picture: %s", error)
        return None
    return base64.b64encode(file.getvalue()).decode("ascii")


def _pixels(latent: Tensor, latent_format: Any) -> Tensor:
    """Return the first picture, uint8 [h, w, 3], of the latents that a sampler returns."""
    x0 = latent_format.process_in(latent)  # the colours are those of the model's own scale
    reshape = getattr(latent_format, "latent_rgb_factors_reshape", None)
    if reshape is not None:
        x0 = reshape(x0)
    x0 = x0[0, :, 0] if x0.ndim == 5 else x0[0]
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    factors = torch.tensor(latent_format.latent_rgb_factors).transpose(0, 1)
    bias = None if bias is None else torch.tensor(bias)
    colours = torch.nn.functional.linear(x0.movedim(0, -1), factors, bias)
    return ((colours + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8)
