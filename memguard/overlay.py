"""Pictures of what was found: a map laid over a picture, and a prompt with its words coloured.

One colour ramp for all: lightness, and with it the grey value of a printout, rises evenly with the number, so order
never hangs on hue alone. Every picture carries its numbers.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .records import Attribution

# OKLab: even steps look even (Ottosson, 2020). Dark blue over green to light yellow.
LIGHTNESS, HUE, CHROMA = (0.28, 0.96), (285.0, 95.0), 0.11
GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
FONT = 13  # pixels
BAR = 24  # height of the legend, pixels
NAMES = {"bos": "[BOS]", "eos": "[EOS]", "padding": "[padding]", "pooled": "[pooled]"}


@lru_cache(maxsize=1)
def ramp() -> np.ndarray:
    """Return the colours from low to high, uint8 [256, 3], sRGB."""
    t = np.linspace(0, 1, 256)
    lightness = LIGHTNESS[0] + (LIGHTNESS[1] - LIGHTNESS[0]) * t
    angle = np.deg2rad(HUE[0] + (HUE[1] - HUE[0]) * t)
    a, b = CHROMA * np.cos(angle), CHROMA * np.sin(angle)
    cone = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ],
        -1,
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (cone**3 @ to_rgb.T).clip(0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    found: np.ndarray = (255 * srgb).round().astype(np.uint8)
    return found


def colours(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the colour of each number, uint8 [..., 3]; NaN counts as low."""
    share = (np.nan_to_num(values, nan=low) - low) / max(high - low, np.finfo(np.float64).tiny)
    found: np.ndarray = ramp()[(255 * share.clip(0, 1)).round().astype(int)]
    return found


def overlay(picture: np.ndarray, heat: np.ndarray, opacity: float = 0.6, legend: str | None = "") -> np.ndarray:
    """Lay a map over a picture. The picture turns grey, so that every colour is the map's.

    Args:
        picture: uint8 [H, W, 3].
        heat: [h, w], any range; scaled up to the picture.
        opacity: of the map where it is highest; it fades with the map, so that the rest stays visible. 0..1.
        legend: what the numbers are, for a bar below the picture; None leaves the bar out.

    Returns:
        uint8 [H, W, 3], or [H + 24, W, 3] with the legend.

    Raises:
        ValueError: for another shape or an opacity out of range.

    """
    if picture.ndim != 3 or picture.shape[2] != 3 or heat.ndim != 2:
        raise ValueError(f"picture is {picture.shape} and the map {heat.shape}; give [H, W, 3] and [h, w]")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is {opacity}; give a number between 0 and 1")
    height, width = picture.shape[:2]
    low, high = float(np.nanmin(heat)), float(np.nanmax(heat))
    scaled = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    values = np.asarray(scaled).clip(low, high)
    share = ((values - low) / max(high - low, np.finfo(np.float64).tiny))[..., None]
    weight = opacity * (0.25 + 0.75 * share)
    grey = (picture @ GREY)[..., None]
    mixed = (grey * (1 - weight) + colours(values, low, high) * weight).round().astype(np.uint8)
    return mixed if legend is None else np.concatenate([mixed, _legend(width, low, high, legend)])


def coloured_prompt(attribution: Attribution, width: int = 768) -> np.ndarray:
    """Return the words of an attribution as a picture: each on its colour, with its weight below, uint8 [H, W, 3]."""
    font = letters()
    weights = np.array(attribution.weights)
    low, high = min(0.0, float(weights.min(initial=0))), float(weights.max(initial=0))
    backs = colours(weights, low, high)
    margin, line = 8, 3 * FONT + 10
    x = y = margin
    boxes = []
    for span, weight, back in zip(attribution.spans, attribution.weights, backs, strict=True):
        word, number = written(span.text or NAMES[span.group]), f"{weight:.3g}"
        wide = int(max(font.getlength(word), font.getlength(number))) + 10
        if x + wide > width - margin and x > margin:
            x, y = margin, y + line
        boxes.append((x, y, wide, word, number, back))
        x += wide + 4
    canvas = Image.new("RGB", (width, y + line + margin), "white")
    draw = ImageDraw.Draw(canvas)
    for left, top, wide, word, number, back in boxes:
        draw.rounded_rectangle((left, top, left + wide, top + FONT + 8), 4, tuple(int(c) for c in back))
        draw.text((left + 5, top + 3), word, ink(back), font)
        draw.text((left + 5, top + FONT + 11), number, "#444444", font)
    return np.asarray(canvas)


def ink(back: np.ndarray) -> str:
    """Return the colour of letters that can be read on a background: black or white, of which the contrast is larger.

    At least 4.5, as WCAG 2 defines it.
    """
    share = np.asarray(back) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    light = float(linear @ np.array([0.2126, 0.7152, 0.0722])) + 0.05
    return "black" if light / 0.05 >= 1.05 / light else "white"


def _legend(width: int, low: float, high: float, title: str) -> np.ndarray:
    bar = np.broadcast_to(ramp()[np.linspace(0, 255, width).round().astype(int)], (BAR, width, 3))
    canvas = Image.fromarray(np.ascontiguousarray(bar))
    draw, font, title = ImageDraw.Draw(canvas), letters(), written(title)
    right = f"{high:.3g}"
    draw.text((4, 4), f"{low:.3g}", "white", font)
    draw.text((width - 4 - font.getlength(right), 4), right, "black", font)
    room = width - 2 * max(font.getlength(right), font.getlength(f"{low:.3g}")) - 24
    if 0 < font.getlength(title) <= room:
        draw.text(((width - font.getlength(title)) / 2, 4), title, "white", font, stroke_width=1, stroke_fill="black")
    return np.asarray(canvas)


@lru_cache(maxsize=1)
def letters() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of all pictures, the one that comes with Pillow; before 10.1, as A1111 has it, of one size."""
    try:
        return ImageFont.load_default(FONT)
    except TypeError:
        return ImageFont.load_default()


def written(text: str) -> str:
    """Return a text as the font can write it: the one of old Pillows knows no letters beyond Latin-1."""
    if isinstance(letters(), ImageFont.FreeTypeFont):
        return text
    return text.encode("latin-1", "replace").decode("latin-1")
