"""Which training pictures come out of a model, from how alike the generated pictures are to the real ones.

A generated picture is a copy of the training picture that it is most like, if it is that in earnest: more alike than
a threshold, and more alike to it than to any held-out picture. The threshold is that of the similarity (measured on
pictures of one style that are no copies), or, where there are held-out pictures, the highest likeness that a picture
generated from a held-out caption has to its own picture, which the model cannot have copied. A picture that follows the
its caption without copying comes no nearer, but for one caption in n + 1 where n were held out (conformal prediction).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..calibration import rates


@dataclass(frozen=True)
class Threshold:
    """From where on a picture is called a copy.

    Attributes:
        value: similarity.
        floor: the similarity's own threshold.
        highest: of the controls; None without any.
        controls: held-out captions, each by the picture that came nearest to its own.
        bound: at most this share of captions like these comes above the threshold, with 95 % confidence; None without
            controls.

    """

    value: float
    floor: float
    highest: float | None = None
    controls: int = 0
    bound: float | None = None


@dataclass(frozen=True)
class Matches:
    """What came out of a model.

    Attributes:
        threshold: that was used.
        own: similarity of each generated picture to its caption's picture, [trained, images].
        other: the highest similarity of each to another picture, real and no near duplicate of its own, [trained,
            images].
        other_index: which picture that is.
        source: the training picture that each generated picture is a copy of, or -1, [trained, images].
        astray: the same for pictures that were generated from held-out captions, [held, images].

    """

    threshold: Threshold
    own: np.ndarray
    other: np.ndarray
    other_index: np.ndarray
    source: np.ndarray
    astray: np.ndarray

    @property
    def copied(self) -> tuple[int, ...]:
        """Numbers of the training pictures that come out, from whatever caption."""
        found = set(self.source.ravel().tolist()) | set(self.astray.ravel().tolist())
        return tuple(sorted(found - {-1}))


def threshold_of(similarity: np.ndarray, trained: int, floor: float) -> Threshold:
    """Return the threshold; arguments as for ``matches``."""
    held = np.arange(trained, len(similarity))
    if not len(held):
        return Threshold(floor, floor)
    highest = float(similarity[held, :, held].max())
    return Threshold(max(floor, highest), floor, highest, len(held), rates.bound(0, len(held)))


def matches(similarity: np.ndarray, trained: int, floor: float, first: np.ndarray | None = None) -> Matches:
    """Return what came out.

    Args:
        similarity: of the pictures generated from each caption to each real picture, [N, images, N]; training pictures
            first, held-out ones behind them.
        trained: how many are training pictures.
        floor: the threshold of the similarity itself.
        first: for each training picture the first near duplicate of it, [trained]; None for none.

    """
    total = len(similarity)
    first = np.arange(trained) if first is None else np.asarray(first)
    threshold = threshold_of(similarity, trained, floor)
    group = np.concatenate((first, np.arange(trained, total)))
    others = np.where((group[:trained, None] == group)[:, None], -np.inf, similarity[:trained])
    nearest = similarity[:, :, :trained].argmax(2)
    best = similarity[:, :, :trained].max(2)
    beyond = similarity[:, :, trained:].max(2) if total > trained else np.full(best.shape, -np.inf)
    source = np.where((best > threshold.value) & (best > beyond), nearest, -1)
    own = similarity[np.arange(trained), :, np.arange(trained)]
    return Matches(threshold, own, others.max(2), others.argmax(2), source[:trained], source[trained:])
