"""What a search found, before it becomes a NeuronSet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .probe import Neuron
from .selection import Round


@dataclass(frozen=True)
class Outcome:
    """The result of a search.

    Attributes:
        neurons: the set.
        candidates: how many neurons it was chosen from.
        round: theta and k of those candidates.
        limit: the score that the set stays at or below.
        reached: whether that is the threshold asked for; else it is what the widest candidates reach.
        notes: what a reader must know.

    """

    neurons: frozenset[Neuron]
    candidates: int
    round: Round
    limit: float
    reached: bool
    notes: tuple[str, ...] = ()


def flat(lists: Mapping[str, Sequence[int]]) -> frozenset[Neuron]:
    """Return the neurons of lists per layer."""
    return frozenset((layer, index) for layer, indices in lists.items() for index in indices)


def by_layer(neurons: Iterable[Neuron], layers: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return sorted indices per layer, in the order of ``layers``; layers without neurons are left out."""
    held = list(neurons)
    found = {name: tuple(sorted(index for layer, index in held if layer == name)) for name in layers}
    return {name: indices for name, indices in found.items() if indices}
