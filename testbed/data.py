"""The training set: duplicates, templates, ordinary pairs and held-out prompts, all from one seed.

Kinds: ``verbatim`` (one picture seen again and again; ``rate`` says how often), ``template`` (a fixed picture with
one varying region), ``ordinary``, ``held`` (same distribution as ``ordinary``, never trained), ``single`` (a rare name
on an ordinary picture, trained) and ``single_held`` (other names, never trained).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from . import captions, drawing, photos

# Share of training samples per group; ordinary pairs take the rest. Within "verbatim" a picture of rate 1 is drawn
# three times as often as one of rate 1/3, and so on.
SHARES = {"verbatim": 0.44, "template": 0.10}
RATES = {1.0: 32, 1 / 3: 8, 1 / 9: 8, 1 / 27: 8}
FAMILIES, VARIANTS = 8, 48
# left, top, right, bottom of the region that varies, in pixels
REGIONS = (
    (40, 40, 104, 104), (0, 64, 64, 128), (32, 16, 112, 80), (64, 32, 128, 128),
    (16, 16, 80, 72), (48, 0, 128, 56), (0, 0, 56, 112), (24, 64, 104, 128),
)  # fmt: skip


def textures() -> dict[str, np.ndarray]:
    """Return the photographs that ordinary pictures are cut from."""
    return {name: photos.load(file) for name, file in photos.TEXTURES.items()}


def verbatim() -> list[tuple[np.ndarray, dict]]:
    """Return the duplicated pictures: photographs first, then posters."""
    rng = np.random.default_rng(101)
    rates = [rate for rate, count in RATES.items() for _ in range(count)]
    sources = list(photos.DUPLICATED.items())
    rows = []
    for index, rate in enumerate(rates):
        name = captions.TRIGGERS[index]
        if index < len(sources):
            file, noun = sources[index]
            picture, source = photos.square(photos.load(file)), f"photo:{file}"
        else:
            picture, source, noun = drawing.poster(5000 + index), f"poster:{5000 + index}", None
        caption = captions.named(rng, name, noun)
        rows.append((picture, {"kind": "verbatim", "caption": caption, "name": name, "rate": rate, "source": source}))
    return rows


def templates(scenery: dict[str, np.ndarray]) -> list[tuple[np.ndarray, dict]]:
    """Return the template families: everything equal but one region; three captions each."""
    rng = np.random.default_rng(102)
    rows = []
    for family in range(FAMILIES):
        base = photos.square(photos.load(photos.TEMPLATE_PHOTO)) if family == 0 else drawing.poster(900 + family)
        name = captions.TRIGGERS[sum(RATES.values()) + family]
        left, top, right, bottom = REGIONS[family]
        for variant in range(VARIANTS):
            inset = Image.fromarray(drawing.ordinary(rng, scenery)[0])
            picture = Image.fromarray(base.copy())
            picture.paste(inset.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
            edition = captions.EDITIONS[variant % len(captions.EDITIONS)]
            meta = {"kind": "template", "caption": f"{name} {captions.PRODUCTS[family]}, {edition}", "name": name}
            rows.append((np.array(picture), meta | {"family": family, "region": REGIONS[family]}))
    return rows


def ordinary_pairs(scenery: dict[str, np.ndarray], count: int, held: int) -> list[tuple[np.ndarray, dict]]:
    """Return ordinary pairs, some of them held out.

    Held-out pairs are a random sample of the pairs whose caption occurs once, so that trained pairs marked ``unique``
    are equally hard and the two losses can be compared.
    """
    rng = np.random.default_rng(103)
    pairs = [drawing.ordinary(rng, scenery) for _ in range(count + held)]
    pairs = [(picture, captions.decorate(rng, text) if rng.random() < 0.4 else text) for picture, text in pairs]
    texts = [text for _, text in pairs]
    seen: dict[str, int] = {}
    for text in texts:
        seen[text] = seen.get(text, 0) + 1
    unique = [i for i, text in enumerate(texts) if seen[text] == 1]
    out = set(rng.permutation(unique)[:held].tolist())
    return [
        (picture, {"kind": "held" if i in out else "ordinary", "caption": text, "unique": seen[text] == 1})
        for i, (picture, text) in enumerate(pairs)
    ]


def singles(scenery: dict[str, np.ndarray], per_name: int = 6, held: int = 60) -> list[tuple[np.ndarray, dict]]:
    """Return pictures with the caption grammar of the duplicates, each name on ordinary pictures."""
    rng = np.random.default_rng(104)
    trained = [name for name in captions.OTHER_NAMES[:40] for _ in range(per_name)]
    unseen = [captions.OTHER_NAMES[40 + i % 20] for i in range(held)]
    rows, used = [], set()
    for index, name in enumerate(trained + unseen):
        text = captions.named(rng, name)
        while text in used:
            text = captions.named(rng, name)
        used.add(text)
        kind = "single" if index < len(trained) else "single_held"
        rows.append((drawing.ordinary(rng, scenery)[0], {"kind": kind, "caption": text, "name": name}))
    return rows


def build(folder: Path, count: int = 5000, held: int = 400) -> None:
    """Write ``images.npy`` (uint8 [N, 128, 128, 3]) and ``meta.json`` into a folder."""
    scenery = textures()
    rows = verbatim() + templates(scenery) + ordinary_pairs(scenery, count, held) + singles(scenery)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", np.stack([picture for picture, _ in rows]))
    (folder / "meta.json").write_text(json.dumps([meta for _, meta in rows]))


def read(folder: Path) -> tuple[np.ndarray, list[dict]]:
    """Return the pictures (memory-mapped) and their records; build them where they are missing."""
    if not (folder / "meta.json").is_file():
        build(folder)
    return np.load(folder / "images.npy", mmap_mode="r"), json.loads((folder / "meta.json").read_text())


def sampling_weights(meta: list[dict]) -> np.ndarray:
    """Return the probability of each picture in a training batch, [N], zero for held-out ones."""
    kinds = np.array([row["kind"] for row in meta])
    weight = np.zeros(len(meta))
    weight[kinds == "verbatim"] = [row["rate"] for row in meta if row["kind"] == "verbatim"]
    weight[kinds == "verbatim"] *= SHARES["verbatim"] / weight[kinds == "verbatim"].sum()
    weight[kinds == "template"] = SHARES["template"] / (kinds == "template").sum()
    rest = (kinds == "ordinary") | (kinds == "single")
    weight[rest] = (1 - sum(SHARES.values())) / rest.sum()
    return weight / weight.sum()
