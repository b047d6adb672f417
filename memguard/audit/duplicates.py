"""Near duplicates in a folder: pictures that are one picture for a model, and which of them to keep.

A picture that is there twice is trained on twice as often, and what is shown most is copied first (Somepalli et al.,
2023; Webster et al., "On the De-duplication of LAION-2B", 2023). Pictures are compared by their perceptual hash:
64 signs of the low frequencies of the cosine transform (Zauner, 2010), by the package imagehash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from ..copies import THRESHOLD
from .folder import Picture, pixels
from .likeness import Likeness

NEAR = 8  # of 64 signs may differ; ordinary pairs differ in 32 on average


@dataclass(frozen=True)
class Group:
    """Pictures that are near duplicates of each other.

    Attributes:
        names: of the pictures.
        keep: the one to keep, that of most pixels.
        caption: the one to keep, that of most different words.
        captions: how many different ones the group has.

    """

    names: tuple[str, ...]
    keep: str
    caption: str
    captions: int


def hashes(pictures: Sequence[Picture]) -> np.ndarray:
    """Return the perceptual hash of each picture and of its mirror image, bool [N, 2, 64]."""
    import imagehash

    def signs(picture: Image.Image) -> np.ndarray:
        return np.asarray(imagehash.phash(picture).hash).ravel()

    opened = (pixels(each, 256) for each in pictures)
    found = [np.stack([signs(each), signs(ImageOps.mirror(each))]) for each in opened]
    return np.stack(found) if found else np.zeros((0, 2, 64), dtype=bool)


def near(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return which pictures of two sets are near duplicates, mirrored or not, bool [N, M].

    Args:
        a: hashes [N, 2, 64].
        b: hashes [M, 2, 64].

    """
    signs = [np.where(each, 1, -1).astype(np.int32) for each in (a[:, 0], b[:, 0], b[:, 1])]
    # the product of two rows of 64 signs is 64 - 2 * (signs that differ)
    alike = np.maximum(signs[0] @ signs[1].T, signs[0] @ signs[2].T)
    found: np.ndarray = alike >= 64 - 2 * NEAR
    return found


def by_hash(a: Sequence[Picture], b: Sequence[Picture]) -> np.ndarray:
    """Return which pictures of two sets are near duplicates by their perceptual hashes, bool [N, M]."""
    return near(hashes(a), hashes(b))


def by_look(a: Sequence[Picture], b: Sequence[Picture]) -> np.ndarray:
    """Return the same by the low-resolution match of ``memguard.copies``, where imagehash is not installed."""
    return Likeness([pixels(each) for each in b]).of([pixels(each) for each in a]) >= THRESHOLD


def components(pairs: np.ndarray) -> list[int]:
    """Return for each picture the first one that it is connected with by near pairs, bool [N, N]; itself if none."""
    first = list(range(len(pairs)))

    def root(i: int) -> int:
        while first[i] != i:
            first[i] = first[first[i]]
            i = first[i]
        return i

    for i, j in np.argwhere(np.triu(pairs, 1)).tolist():
        a, b = sorted((root(i), root(j)))
        first[b] = a
    return [root(i) for i in range(len(pairs))]


def groups(pictures: Sequence[Picture], first: Sequence[int]) -> tuple[Group, ...]:
    """Return the groups of two pictures or more.

    Args:
        pictures: of the folder.
        first: of ``components``.

    """
    members: dict[int, list[Picture]] = {}
    for picture, index in zip(pictures, first, strict=True):
        members.setdefault(index, []).append(picture)
    return tuple(_group(each) for each in members.values() if len(each) > 1)


def _group(pictures: list[Picture]) -> Group:
    keep = max(pictures, key=lambda each: each.width * each.height)
    # the caption that says most: a picture whose caption says little about it is found under many captions
    captions = list(dict.fromkeys(each.caption for each in pictures))
    caption = max(captions, key=lambda text: len(set(text.casefold().split())))
    return Group(tuple(each.name for each in pictures), keep.name, caption, len(captions))
