"""Group testing: few questions, several at once, in place of one question per neuron.

All functions ask ``passes(sets) -> list[bool]``, whether blocking a set is enough; the sets of one call are rows of
one batch. They take for granted that more blocked neurons are never worse, which holds nearly; so what they return
has to be verified, and asking again for a set costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Passes = Callable[[list[frozenset[Item]]], list[bool]]
Scores = Callable[[list[frozenset[Item]]], list[float]]

SECTIONS = 3  # questions per round of a search
TESTS = 32  # items that are left out, one by one, in one round of ``prune``


def first(passes: Callable[[list[int]], list[bool]], count: int) -> int:
    """Return the smallest i in 0..count-1 that passes, if all after it do; ``count - 1`` is taken to pass."""
    low, high = 0, count - 1
    while low < high:
        asked = sorted({low + (high - low) * k // (SECTIONS + 1) for k in range(1, SECTIONS + 1)})
        for place, enough in zip(asked, passes(asked), strict=True):
            if enough:
                high = place
                break
            low = place + 1
    return low


def shortest(ranked: Sequence[Item], passes: Passes[Item]) -> list[Item]:
    """Return the shortest head of a ranking that passes, at least one item; the whole ranking is taken to pass."""
    return list(ranked[: 1 + first(lambda places: passes([frozenset(ranked[: p + 1]) for p in places]), len(ranked))])


def prune(ranked: Sequence[Item], scores: Scores[Item], limit: float, afford: Callable[[int], bool]) -> list[Item]:
    """Leave out what is not needed, the least important first.

    Up to 32 items are left out one at a time, all in one batch; of those that are not needed alone, as many as possible
    are left out together, those first whose absence costs least. So on with the next 32, until a whole batch is needed:
    what ranks higher then is, too.

    Args:
        ranked: the most important first.
        scores: of blocking each of some sets.
        limit: a set is enough if its score is not above it.
        afford: whether a number of questions may still be asked; only larger sets ask for that.

    """
    left, waiting = list(ranked), list(reversed(ranked))
    while waiting and len(left) > 1:
        asked, waiting = waiting[:TESTS], waiting[TESTS:]
        if len(left) > TESTS and not afford(len(asked)):
            break
        found = dict(zip(asked, scores([_without(left, [item]) for item in asked]), strict=True))
        spare = sorted((item for item in asked if found[item] <= limit), key=lambda item: found[item])
        if not spare:
            break
        gone = spare[: _together(left, spare[: len(left) - 1], scores, limit)]
        left = [item for item in left if item not in gone]
    return left


def one_by_one(items: Sequence[Item], scores: Scores[Item], limit: float) -> list[Item]:
    """Leave out each item in turn if the rest is enough without it; one question per item."""
    left = list(items)
    for item in items:
        if len(left) > 1 and scores([_without(left, [item])])[0] <= limit:
            left.remove(item)
    return left


def _together(left: Sequence[Item], spare: Sequence[Item], scores: Scores[Item], limit: float) -> int:
    """Return how many of the spare items, from the first on, can be left out at once."""

    def passes(stay: list[int]) -> list[bool]:
        return [s <= limit for s in scores([_without(left, spare[: len(spare) - n]) for n in stay])]

    return len(spare) - first(passes, len(spare))


def _without(items: Sequence[Item], gone: Sequence[Item]) -> frozenset[Item]:
    return frozenset(items).difference(gone)
