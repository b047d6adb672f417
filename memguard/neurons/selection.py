"""Which neurons respond unusually to a prompt: NeMo's candidates S(theta, k) and the sweep that widens them.

S(theta, k) = {|a - mean| / std > theta} and the k largest |a| of each layer (Hintersdorf et al., NeurIPS 2024,
section 3.2). The sweep starts at theta 5, k 0; each round theta falls by .25 and k rises by 1, until blocking the
candidates changes the noise difference enough (score <= threshold) or theta reaches 1. The sets are nested.

What the official code does and ``parity="official"`` repeats: theta = 1 is never evaluated, so where no round is
enough, the candidates of 1.25 are kept and their score becomes the threshold of the refinement; and a neuron that
is found by both rules stands in the list twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..table import NEURONS
from ..troubles import Refused
from .activations import ActivationStatistics

THETA, SMALLEST_THETA, STEP = 5.0, 1.0, 0.25
THRESHOLD: float = NEURONS["threshold"].default  # mean + 1 std of ordinary prompts on SD1.4 (NeMo, section 4)

Lists = dict[str, list[int]]  # layer -> indices, in the order in which refinement goes through them


@dataclass(frozen=True)
class Round:
    """One round of the sweep."""

    theta: float
    top_k: int


@dataclass(frozen=True)
class Selected:
    """Where a sweep ended.

    Attributes:
        lists: the candidates.
        round: theta and k that gave them.
        score: of blocking them.
        threshold: what refinement must stay below: the one asked for, or ``score`` where it was not reached.
        reached: whether it was.

    """

    lists: Lists
    round: Round
    score: float
    threshold: float
    reached: bool


def candidates(
    activations: Mapping[str, Tensor],
    statistics: ActivationStatistics,
    theta: float,
    top_k: int = 0,
    parity: str | None = None,
) -> Lists:
    """Return S(theta, k), per layer.

    Args:
        activations: of the prompt, layer -> [width].
        statistics: of ordinary prompts.
        theta: neurons whose z-score is above it.
        top_k: the neurons with the largest activation, per layer.
        parity: "official" lists the z-scores' neurons, then the top ones, largest first; None sorts, without doubles.

    Raises:
        ValueError: for a negative theta or top_k, or activations that are not finite.

    """
    if not theta >= 0 or top_k < 0:
        raise Refused(f"theta is {theta} and top_k {top_k}; both are at least 0")
    if not all(bool(values.isfinite().all()) for values in activations.values()):
        raise Refused("the prompt's activations hold NaN or infinity; run the text encoder in float32")
    found = {}
    scores = statistics.zscores(activations)
    for name, values in activations.items():
        unusual = (scores[name] > theta).nonzero().flatten().tolist()
        top = values.abs().topk(min(top_k, len(values))).indices.tolist()
        found[name] = [*unusual, *top] if parity else sorted({*unusual, *top})
    return found


def rounds(parity: str | None = None) -> list[Round]:
    """Return the rounds of the sweep, narrowest first; the official code leaves out the last."""
    count = round((THETA - SMALLEST_THETA) / STEP) + (0 if parity else 1)
    return [Round(THETA - STEP * i, i) for i in range(count)]


def sweep(
    select: Callable[[Round], Lists],
    score: Callable[[Lists], float],
    threshold: float = THRESHOLD,
    parity: str | None = None,
) -> Selected:
    """Widen the candidates until blocking them is enough.

    Args:
        select: the candidates of a round.
        score: of blocking them.
        threshold: what is enough.
        parity: "official" as said above; None evaluates theta = 1 too.

    """
    value, lists, last = math.inf, Lists(), Round(THETA, 0)
    for last in rounds(parity):
        lists = select(last)
        value = score(lists)
        if value <= threshold:
            return Selected(lists, last, value, threshold, True)
    return Selected(lists, last, value, value, False)
