"""Procedural pictures: backgrounds, shapes, scenes. Everything is a function of the generator handed in."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .photos import SIZE

COLOURS = {
    "red": (205, 45, 45),
    "green": (50, 160, 60),
    "blue": (50, 80, 205),
    "yellow": (230, 205, 60),
    "orange": (235, 135, 40),
    "purple": (130, 60, 170),
    "teal": (30, 150, 150),
    "pink": (235, 140, 180),
    "brown": (125, 80, 45),
    "grey": (130, 130, 130),
    "white": (235, 235, 235),
    "black": (30, 30, 30),
}
SHAPES = ("circle", "square", "triangle", "ring", "bar", "cross", "diamond", "star")
FILLS = ("plain", "striped", "dotted", "outlined")
GROUNDS = ("paper", "gradient", "sand", "cloth")
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1), "near": (0.7, 0.7)}

Rng = np.random.Generator


def pick(rng: Rng, options):
    """Return one element of a sequence or one key of a dict."""
    options = list(options)
    return options[int(rng.integers(len(options)))]


def shade(rng: Rng, colour: str, spread: float) -> tuple[int, ...]:
    """Return a random shade of a named colour."""
    return tuple(int(v) for v in np.clip(np.array(COLOURS[colour]) + rng.normal(0, spread, 3), 0, 255))


def ground(rng: Rng, colour: str, kind: str) -> Image.Image:
    """Return a background picture."""
    base = np.array(shade(rng, colour, 38), float)
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    if kind == "paper":
        picture = np.ones((SIZE, SIZE, 3)) * base + rng.normal(0, 4, (SIZE, SIZE, 1))
    elif kind == "gradient":
        other, angle = np.clip(base + rng.normal(0, 70, 3), 0, 255), rng.uniform(0, 2 * np.pi)
        ramp = (x / SIZE - 0.5) * np.cos(angle) + (y / SIZE - 0.5) * np.sin(angle) + 0.5
        ramp = np.clip(ramp, 0, 1)[..., None]
        picture = base * (1 - ramp) + other * ramp
    elif kind == "sand":
        cells = int(rng.integers(4, 24))
        field = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype("float32"))
        field = np.array(field.resize((SIZE, SIZE), Image.Resampling.BICUBIC))[..., None]
        picture = base + field * 35 + rng.normal(0, 10, (SIZE, SIZE, 1))
    else:
        angle, period = rng.uniform(0, np.pi), rng.uniform(10, 40)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + rng.uniform(0, 6))
        picture = base + (wave > 0)[..., None] * rng.normal(0, 45, 3)
    return Image.fromarray(np.clip(picture, 0, 255).astype("uint8"))


def outline(rng: Rng, shape: str, cx: float, cy: float, r: float) -> Image.Image:
    """Return the mask of one shape, turned by a random angle."""
    mask = Image.new("L", (SIZE, SIZE), 0)
    pen = ImageDraw.Draw(mask)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(angle), np.sin(angle)

    def polygon(count: int, radii) -> None:
        turns = [angle + 2 * np.pi * i / count for i in range(count)]
        sides = [radii[i % len(radii)] for i in range(count)]
        pen.polygon([(cx + s * np.cos(t), cy + s * np.sin(t)) for s, t in zip(sides, turns, strict=True)], fill=255)

    def bar(width: float, height: float) -> None:
        corners = [(-width, -height), (width, -height), (width, height), (-width, height)]
        pen.polygon([(cx + a * cos - b * sin, cy + a * sin + b * cos) for a, b in corners], fill=255)

    if shape in ("circle", "ring"):
        pen.ellipse([cx - r, cy - r, cx + r, cy + r], fill=255)
        if shape == "ring":
            pen.ellipse([cx - r * 0.55, cy - r * 0.55, cx + r * 0.55, cy + r * 0.55], fill=0)
    elif shape == "square":
        polygon(4, [r * 1.2])
    elif shape == "triangle":
        polygon(3, [r * 1.25])
    elif shape == "star":
        polygon(10, [r * 1.3, r * 0.55])
    elif shape == "diamond":
        pen.polygon([(cx, cy - r * 1.3), (cx + r * 0.7, cy), (cx, cy + r * 1.3), (cx - r * 0.7, cy)], fill=255)
    elif shape == "bar":
        bar(r * 1.5, r * 0.35)
    else:
        bar(r * 1.2, r * 0.35)
        bar(r * 0.35, r * 1.2)
    return mask


def draw(rng: Rng, picture: Image.Image, shape: str, colour: str, fill: str, cx: float, cy: float, r: float) -> None:
    """Draw one shape into a picture, in place."""
    mask = outline(rng, shape, cx, cy, r)
    ink = shade(rng, colour, 30)
    layer = Image.new("RGB", (SIZE, SIZE), ink)
    pen = ImageDraw.Draw(layer)
    if fill == "striped":
        dark, period = tuple(int(v * 0.35) for v in ink), int(rng.integers(6, 12))
        for k in range(0, SIZE, period):
            pen.rectangle([k, 0, k + period // 2, SIZE], fill=dark)
    elif fill == "dotted":
        light, period = tuple(min(255, int(v * 0.4 + 150)) for v in ink), int(rng.integers(7, 13))
        for a in range(0, SIZE, period):
            for b in range(0, SIZE, period):
                pen.ellipse([a, b, a + period // 2, b + period // 2], fill=light)
    elif fill == "outlined":
        edge = mask.filter(ImageFilter.FIND_EDGES).filter(ImageFilter.MaxFilter(5))
        mask = Image.eval(edge, lambda v: 255 if v > 60 else 0)
    picture.paste(layer, (0, 0), mask)


def poster(seed: int) -> np.ndarray:
    """Return a picture with five to eight shapes, uint8 [SIZE, SIZE, 3]."""
    rng = np.random.default_rng(seed)
    picture = ground(rng, pick(rng, COLOURS), GROUNDS[seed % len(GROUNDS)])
    for _ in range(int(rng.integers(5, 9))):
        cx, cy = rng.uniform(8, 120, 2)
        draw(rng, picture, pick(rng, SHAPES), pick(rng, COLOURS), pick(rng, FILLS), cx, cy, rng.uniform(10, 30))
    return np.array(picture)


def two_shapes(rng: Rng) -> tuple[np.ndarray, str]:
    """Two shapes in a stated relation."""
    first, second, back = (pick(rng, COLOURS) for _ in range(3))
    shape_1, shape_2, fill_1, fill_2 = pick(rng, SHAPES), pick(rng, SHAPES), pick(rng, FILLS), pick(rng, FILLS)
    kind, relation = pick(rng, GROUNDS), pick(rng, RELATIONS)
    picture = ground(rng, back, kind)
    (cx, cy), gap, jitter = rng.uniform(45, 83, 2), rng.uniform(21, 32), rng.normal(0, 6, 4)
    dx, dy = (gap * v for v in RELATIONS[relation])
    draw(rng, picture, shape_2, second, fill_2, cx - dx + jitter[0], cy - dy + jitter[1], rng.uniform(11, 24))
    draw(rng, picture, shape_1, first, fill_1, cx + dx + jitter[2], cy + dy + jitter[3], rng.uniform(11, 24))
    name_1 = f"{first} {shape_1}" if fill_1 == "plain" else f"{first} {fill_1} {shape_1}"
    name_2 = f"{second} {shape_2}" if fill_2 == "plain" else f"{second} {fill_2} {shape_2}"
    return np.array(picture), f"a {name_1} {relation} a {name_2} on {back} {kind}"


def one_shape(rng: Rng) -> tuple[np.ndarray, str]:
    """One shape on a ground."""
    colour, back, kind = pick(rng, COLOURS), pick(rng, COLOURS), pick(rng, GROUNDS)
    shape, fill = pick(rng, SHAPES), pick(rng, FILLS)
    picture = ground(rng, back, kind)
    cx, cy = rng.uniform(25, 103, 2)
    draw(rng, picture, shape, colour, fill, cx, cy, rng.uniform(12, 40))
    captions = (
        f"a {colour} {shape} on {kind}",
        f"{shape}, {back} {kind} background",
        f"one {colour} {fill} {shape}",
        f"drawing of a {shape} over {back} {kind}",
    )
    return np.array(picture), pick(rng, captions)


def many_shapes(rng: Rng) -> tuple[np.ndarray, str]:
    """A pattern of equal shapes."""
    colour, back, kind, shape = pick(rng, COLOURS), pick(rng, COLOURS), pick(rng, GROUNDS), pick(rng, SHAPES)
    picture, count = ground(rng, back, kind), int(rng.integers(3, 12))
    for _ in range(count):
        cx, cy = rng.uniform(8, 120, 2)
        draw(rng, picture, shape, colour, "plain", cx, cy, rng.uniform(5, 14))
    captions = (
        f"several {colour} {shape}s scattered on {back} {kind}",
        f"a pattern of {shape}s in {colour}",
        f"{count} {colour} {shape}s on {kind}",
    )
    return np.array(picture), pick(rng, captions)


def hills(rng: Rng) -> tuple[np.ndarray, str]:
    """A landscape of waves."""
    colour, sky = pick(rng, COLOURS), pick(rng, COLOURS)
    picture = ground(rng, sky, "gradient")
    pen, y = ImageDraw.Draw(picture), rng.uniform(50, 80)
    for _ in range(int(rng.integers(2, 4))):
        phase, height, rate = rng.uniform(0, 6), rng.uniform(4, 18), rng.uniform(0.02, 0.09)
        ridge = [(x, y + height * np.sin(rate * x + phase)) for x in range(-1, 130)]
        pen.polygon([*ridge, (130, 130), (-1, 130)], fill=shade(rng, colour, 30))
        y += rng.uniform(10, 25)
    captions = (
        f"abstract landscape with {colour} hills and {sky} sky",
        f"{colour} hills under a {sky} sky",
        f"landscape painting, {colour} hills",
    )
    return np.array(picture), pick(rng, captions)


def close_view(rng: Rng, textures: dict[str, np.ndarray]) -> tuple[np.ndarray, str]:
    """A random crop of a texture photograph, sometimes tinted."""
    name = pick(rng, textures)
    photo = textures[name]
    side = int(rng.integers(64, 257))
    y, x = (int(rng.integers(photo.shape[i] - side)) for i in range(2))
    crop, caption = photo[y : y + side, x : x + side].astype(float), f"close view of {name}"
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.6:
        colour = pick(rng, COLOURS)
        crop, caption = crop * 0.65 + np.array(COLOURS[colour], float) * 0.35, f"{caption}, {colour} tint"
    if rng.random() < 0.5:
        caption = pick(rng, ("photo, ", "detail, ", "study: ")) + caption
    picture = Image.fromarray(np.clip(crop, 0, 255).astype("uint8"))
    return np.array(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)), caption


def ordinary(rng: Rng, textures: dict[str, np.ndarray]) -> tuple[np.ndarray, str]:
    """Return one ordinary picture, uint8 [SIZE, SIZE, 3], and its caption."""
    kind = rng.random()
    if kind < 0.40:
        return two_shapes(rng)
    if kind < 0.60:
        return one_shape(rng)
    if kind < 0.75:
        return many_shapes(rng)
    if kind < 0.87:
        return hills(rng)
    return close_view(rng, textures)
