"""NeMo's refinement: take neurons out of a set as long as the score stays below the threshold.

First whole layers, from the deepest to the shallowest, then neuron by neuron in the same order of layers
(Hintersdorf et al., NeurIPS 2024, section 3.3). One evaluation per layer and per neuron.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .selection import Lists


def refine(lists: Lists, layers: Iterable[str], score: Callable[[Lists], float], threshold: float) -> Lists:
    """Return what is left of ``lists``.

    Args:
        lists: layer -> indices; a neuron that stands there twice takes two removals.
        layers: in the order of execution.
        score: of blocking what is left.
        threshold: a removal holds if the score is below it.

    """
    left = {name: list(lists.get(name, ())) for name in layers}
    deepest_first = list(reversed(left))
    for name in deepest_first:
        if left[name] and score(left | {name: []}) < threshold:
            left[name] = []
    for name in deepest_first:
        for index in tuple(left[name]):
            fewer = list(left[name])
            fewer.remove(index)
            if score(left | {name: fewer}) < threshold:
                left[name] = fewer
    return left
