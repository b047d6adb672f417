"""The real pictures of an audit: what is compared with what, near duplicates told apart first."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..copies.signatures import Signatures
from ..lists import BadInput
from ..texts import shown
from .duplicates import Group, by_hash, components
from .duplicates import groups as groups_of
from .folder import Folder, Picture, pixels
from .likeness import Likeness


@dataclass(frozen=True)
class Reals:
    """The real pictures of an audit, training pictures first, held-out ones behind them.

    Attributes:
        pictures: all of them.
        trained: how many are training pictures.
        first: for each training picture the first near duplicate of it, [trained].
        likeness: to them.
        similarity: between them, [N, N].
        looks: what k-means makes cells of, [N, dimensions].

    """

    pictures: tuple[Picture, ...]
    trained: int
    first: np.ndarray
    likeness: Likeness
    similarity: np.ndarray
    looks: np.ndarray

    @property
    def captions(self) -> list[str]:
        """Of all pictures."""
        return [each.caption for each in self.pictures]

    @property
    def digest(self) -> str:
        """16 hex digits that name the pictures with their names and captions."""
        found = hashlib.sha256()
        for each in self.pictures:
            found.update(f"{each.name}\0{each.caption}\0".encode("utf-8", "backslashreplace"))
            found.update(each.path.read_bytes())
        return found.hexdigest()[:16]


def gathered(
    folder: Folder,
    held: Folder,
    limit: int | None,
    seed: int,
    kind: Signatures | None = None,
    near: Callable[[Sequence[Picture], Sequence[Picture]], np.ndarray] = by_hash,
) -> tuple[Reals, tuple[Group, ...], list[str]]:
    """Return the pictures that are compared, the near duplicates, and notes on held-out pictures that are none.

    Args:
        folder: of training pictures.
        held: of held-out ones.
        limit: that many of the training pictures, drawn at random; None for all.
        seed: of that draw.
        kind: of what is compared; None for thumbnails.
        near: which pictures of two sets are near duplicates, bool [N, M].

    Raises:
        BadInput: for fewer than two training pictures.

    """
    trained = list(folder.pictures)
    if len(trained) < 2:
        raise BadInput("one training picture is too few; a copy is told by what the other pictures are like")
    if limit is not None and limit < len(trained):
        chosen = np.random.default_rng(seed).choice(len(trained), limit, replace=False)
        trained = [trained[i] for i in sorted(chosen.tolist())]
    first = components(near(folder.pictures, folder.pictures))
    groups = groups_of(folder.pictures, first)
    others: list[Picture] = []
    notes = []
    if held.pictures:
        twins = near(held.pictures, folder.pictures)
        for picture, twin in zip(held.pictures, twins, strict=True):
            if twin.any():
                name = folder.pictures[int(twin.argmax())].name
                notes.append(shown(f"{picture.name}: is a near duplicate of the training picture {name}; not held out"))
            else:
                others.append(picture)
    place = {each.name: i for i, each in enumerate(trained)}
    root = {each.name: first[i] for i, each in enumerate(folder.pictures)}
    kept: dict[int, int] = {}
    for each in trained:
        kept.setdefault(root[each.name], place[each.name])
    pictures = (*trained, *others)
    opened = [pixels(each) for each in pictures]
    likeness = Likeness(opened, kind)
    looks = np.stack([np.asarray(each.resize((8, 8), Image.Resampling.BOX), np.float32).ravel() for each in opened])
    roots = np.array([kept[root[each.name]] for each in trained])
    return Reals(pictures, len(trained), roots, likeness, likeness.between(), looks), groups, notes
