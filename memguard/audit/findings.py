"""From how alike the generated pictures are to the real ones to what is said of a checkpoint.

Room: the core. May import: numpy, memguard.audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .checkpoints import Age
from .copied import matches
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


def checkpoint(
    name: str,
    digest: str,
    age: Age,
    reals: Reals,
    similarity: np.ndarray,
    scores: Sequence[float | None],
    before: Before,
    floor: float,
    images: Sequence[str],
    deals: int,
) -> Checkpoint:
    """Return what is said of one checkpoint.

    Args:
        name: of the file.
        digest: of what is in it.
        age: of the training.
        reals: the real pictures.
        similarity: of the images of each caption to each real picture, [N, images, N].
        scores: of the first step, per training picture.
        before: without the training.
        floor: the similarity's own threshold.
        images: file of the most alike image of each training picture.
        deals: of the test's relabelling.

    """
    trained = reals.trained
    found = matches(similarity, trained, floor, reals.first)
    copied = set(found.copied)
    bringing: dict[int, list[str]] = {}
    for index, sources in enumerate([*found.source, *found.astray]):
        for source in sorted(set(sources.tolist()) - {-1, index}):
            bringing.setdefault(source, []).append(reals.pictures[index].name)
    rows = []
    highest = found.threshold.highest
    for i, picture in enumerate(reals.pictures[:trained]):
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
                scores[i],
                before.scores[i],
                images[i],
            )
        )
    test = _test(reals, similarity, deals)
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
