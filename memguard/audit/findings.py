"""From a model to what is said of it: its pictures, how alike they are to the real ones, what follows from that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .checkpoints import Age
from .copied import matches
from .making import Model
from .reals import Reals
from .record import Checked, Checkpoint
from .three_samples import ThreeSamples, cells_of, three_samples


@dataclass(frozen=True)
class Before:
    """What the model without the training does with the captions of the training pictures.

    ``scores`` [trained], ``own`` [trained, images]: how alike its images are to the pictures.
    """

    scores: Sequence[float | None]
    own: np.ndarray


@dataclass(frozen=True)
class After:
    """What a model with the training does with the captions of all pictures.

    ``scores`` [trained], ``similarity`` [N, images, N] of the images of each caption to each real picture, ``images``
    [trained] the files of the most alike ones.
    """

    scores: Sequence[float | None]
    similarity: np.ndarray
    images: Sequence[str]


def without(model: Model, reals: Reals) -> Before:
    """Return what a model without the training does."""
    captions = reals.captions[: reals.trained]
    scores = model.scores(captions)
    similarity, _ = _compared(model, captions, reals, lambda *_: "")
    numbers = np.arange(len(captions))
    return Before(scores, similarity[numbers, :, numbers])


def trained(model: Model, reals: Reals, keep: Callable[[int, np.ndarray], str]) -> After:
    """Return what a model with the training does.

    Args:
        model: the host's.
        reals: the real pictures.
        keep: gets the number of each training picture and the most alike image of its caption, uint8 [H, W, 3]; returns
            the file in which it is, "" for none.

    """
    scores = model.scores(reals.captions[: reals.trained])
    return After(scores, *_compared(model, reals.captions, reals, keep))


def _compared(
    model: Model, captions: Sequence[str], reals: Reals, keep: Callable[[int, np.ndarray], str]
) -> tuple[np.ndarray, list[str]]:
    rows, names = [], []
    for index, made in enumerate(model.pictures(captions)):
        # [images, N]
        row = reals.likeness.of([Image.fromarray(each) for each in made])
        rows.append(row)
        if index < reals.trained:
            names.append(keep(index, made[row[:, index].argmax()]))
    return np.stack(rows), names


def checkpoint(
    name: str,
    digest: str,
    age: Age,
    reals: Reals,
    after: After,
    before: Before,
    floor: float,
    deals: int,
) -> Checkpoint:
    """Return what is said of one checkpoint.

    Args:
        name: of the file.
        digest: of what is in it.
        age: of the training.
        reals: the real pictures.
        after: with the training.
        before: without it.
        floor: the similarity's own threshold.
        deals: of the test's relabelling.

    """
    found = matches(after.similarity, reals.trained, floor, reals.first)
    copied = set(found.copied)
    bringing: dict[int, list[str]] = {}
    for index, sources in enumerate([*found.source, *found.astray]):
        for source in sorted(set(sources.tolist()) - {-1, index}):
            bringing.setdefault(source, []).append(reals.pictures[index].name)
    rows = []
    highest = found.threshold.highest
    for i, picture in enumerate(reals.pictures[: reals.trained]):
        nearest = found.other[i].argmax()
        rows.append(
            Checked(
                picture.name,
                picture.caption,
                i in copied,
                i not in copied and highest is not None and float(found.own[i].max()) > highest,
                int((found.source[i] == i).sum()),
                tuple(bringing.get(i, ())),
                tuple(found.own[i].tolist()),
                tuple(before.own[i].tolist()),
                reals.pictures[found.other_index[i, nearest]].name if np.isfinite(found.other[i, nearest]) else "",
                max(0.0, float(found.other[i, nearest])),
                after.scores[i],
                before.scores[i],
                after.images[i],
            )
        )
    test = _test(reals, after.similarity, deals)
    return Checkpoint(name, digest, age, found.threshold, test, tuple(rows))


def _test(reals: Reals, similarity: np.ndarray, deals: int) -> ThreeSamples | None:
    """Run the test on one picture of each group of near duplicates; None for fewer than two."""
    alone = np.flatnonzero(reals.first == np.arange(reals.trained))
    if len(alone) < 2:
        return None
    kept = np.concatenate((alone, np.arange(reals.trained, len(reals.pictures))))
    cells = cells_of(reals.looks[kept], len(alone))
    distance = 1 - similarity[kept][:, :, kept].astype(float)
    test = three_samples(1 - reals.similarity[np.ix_(kept, kept)].astype(float), distance, len(alone), cells, deals)
    named = tuple(replace(each, pictures=tuple(alone[list(each.pictures)].tolist())) for each in test.cells)
    return replace(test, cells=named)
