"""Pictures to measure the search for copies with: originals, copies of them, and other pictures of the same style.

Most are drawn (five styles of the test bed's training set), the others are tiles of photographs that ship inside
scikit-image and scikit-learn. Near misses of a drawn original are other pictures of its style; near misses of a tile
are tiles of the same photograph that do not overlap it. The two halves share no photograph and no seed.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from testbed import drawing, photos

STYLES = ("two_shapes", "one_shape", "many_shapes", "hills", "poster")
TILE = 100  # pixels of a side, at least
MOST = 4  # tiles of a side of a photograph, so that none of them outweighs the others
BLANK = 8.0  # grey levels: a tile of a smaller standard deviation has nothing by which it could be known
Rng = np.random.Generator


@dataclass(frozen=True)
class Half:
    """Originals, and pictures of the same styles that are none.

    Attributes:
        originals: pictures.
        others: near misses.
        styles: of the originals, then of the others.

    """

    originals: list[Image.Image]
    others: list[Image.Image]
    styles: tuple[list[str], list[str]]


def drawn(style: str, rng: Rng) -> Image.Image:
    """Return a drawn picture, 128 x 128."""
    if style == "poster":
        return Image.fromarray(drawing.poster(int(rng.integers(1 << 40))))
    return Image.fromarray(getattr(drawing, style)(rng)[0])


def tiles(name: str) -> list[Image.Image]:
    """Return the tiles of a photograph, none of which overlap, in an order that mixes places."""
    picture = Image.fromarray(photos.load(name))
    columns, rows = (min(MOST, max(2, side // TILE)) for side in picture.size)
    width, height = picture.width // columns, picture.height // rows
    boxes = [(x * width, y * height, (x + 1) * width, (y + 1) * height) for y in range(rows) for x in range(columns)]
    found = [picture.crop(box) for box in boxes]
    return [tile for tile in found if np.asarray(tile.convert("L")).std() >= BLANK]


def half(number: int, each: int = 60) -> Half:
    """Return half 0 or half 1: ``each`` originals and twice as many near misses of each drawn style, and the tiles."""
    rng = np.random.default_rng(9000 + number)
    originals, others, styles = [], [], ([], [])
    for style in STYLES:
        originals += [drawn(style, rng) for _ in range(each)]
        others += [drawn(style, rng) for _ in range(2 * each)]
        styles[0].extend([style] * each)
        styles[1].extend([style] * 2 * each)
    for name in sorted(photos.LICENCES)[number::2]:
        for place, tile in enumerate(tiles(name)):
            (others if place % 2 else originals).append(tile)
            styles[place % 2].append("photograph")
    return Half(originals, others, styles)


def _crop(low: float, high: float) -> Callable[[Image.Image, Rng], Image.Image]:
    def cropped(picture: Image.Image, rng: Rng) -> Image.Image:
        width, height = (max(8, round(side * rng.uniform(low, high))) for side in picture.size)
        x, y = int(rng.integers(picture.width - width + 1)), int(rng.integers(picture.height - height + 1))
        return picture.crop((x, y, x + width, y + height))

    return cropped


def _flip(picture: Image.Image, rng: Rng) -> Image.Image:
    return ImageOps.mirror(picture)


def _resize(picture: Image.Image, rng: Rng) -> Image.Image:
    shape = rng.uniform(0.8, 1.25)
    scale = rng.uniform(0.3, 2.0)
    return picture.resize((round(picture.width * scale * shape), round(picture.height * scale / shape)))


def _jpeg(picture: Image.Image, rng: Rng) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(rng.integers(30, 71)))
    return Image.open(file).convert("RGB")


def _colour(picture: Image.Image, rng: Rng) -> Image.Image:
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = kind(picture).enhance(rng.uniform(0.6, 1.4))
    turned = np.asarray(picture.convert("HSV")).copy()
    turned[..., 0] += np.uint8(rng.integers(-14, 15) % 256)  # up to 20 degrees
    return Image.fromarray(turned, "HSV").convert("RGB")


def _border(picture: Image.Image, rng: Rng) -> Image.Image:
    sides = [round(picture.size[i % 2] * rng.uniform(0.03, 0.15)) for i in range(4)]
    return ImageOps.expand(picture, tuple(sides), tuple(int(v) for v in rng.integers(0, 256, 3)))


def _text(picture: Image.Image, rng: Rng) -> Image.Image:
    picture = picture.copy()
    pen = ImageDraw.Draw(picture)
    colour = tuple(int(v) for v in rng.integers(0, 256, 3))
    for _ in range(2):
        size = picture.height * rng.uniform(0.1, 0.18)
        at = rng.uniform(0, 0.3) * picture.width, rng.uniform(0, 0.85) * picture.height
        pen.text(at, "SAMPLE 2026", fill=colour, font_size=size)
    return picture


def _turn(picture: Image.Image, rng: Rng) -> Image.Image:
    return picture.rotate(rng.uniform(3, 8) * (-1) ** int(rng.integers(2)), Image.Resampling.BICUBIC)


def _all(picture: Image.Image, rng: Rng) -> Image.Image:
    for change in (CHANGES["crop to 70-90 %"], _colour, _text, _resize, _jpeg):
        picture = change(picture, rng)
    return _flip(picture, rng) if rng.random() < 0.5 else picture


CHANGES: dict[str, Callable[[Image.Image, Rng], Image.Image]] = {
    "none": lambda picture, rng: picture,
    "crop to 70-90 %": _crop(0.7, 0.9),
    "flip": _flip,
    "resize": _resize,
    "JPEG 30-70": _jpeg,
    "colour shift": _colour,
    "border": _border,
    "text overlay": _text,
    "crop, colour, text, resize, JPEG, half flipped": _all,
    "not promised: crop to 50-70 %": _crop(0.5, 0.7),
    "not promised: turned by 3-8 degrees": _turn,
}


def copies(half: Half, change: str, seed: int) -> list[Image.Image]:
    """Return one copy of each original."""
    rng = np.random.default_rng([seed, list(CHANGES).index(change)])
    return [CHANGES[change](picture, rng) for picture in half.originals]
