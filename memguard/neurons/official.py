"""NeMo's own search (Hintersdorf et al., NeurIPS 2024, section 3).

The candidates are widened until blocking them is enough, and then taken away one by one.

Every evaluation is a forward pass over all seeds, also those that do not count. The official scripts make two
passes per evaluation and use the second, and repeat some; here each is made once, so the official procedure costs
more than twice the rows that are counted here.
"""

from __future__ import annotations

from collections.abc import Callable

from .evaluation import Trials
from .outcome import Outcome, flat
from .refinement import refine
from .selection import Lists, Round, sweep


def search(trials: Trials, select: Callable[[Round], Lists], limit: float, parity: str | None = "official") -> Outcome:
    """Return what NeMo's search finds.

    Args:
        trials: the prompt; its seeds are chosen.
        select: the candidates of a round.
        limit: the threshold asked for.
        parity: of the sweep.

    """

    def score(lists: Lists) -> float:
        return trials.score(flat(lists))

    trials.stage, trials.whole = "selection", True
    start = sweep(select, score, limit, parity)
    trials.stage, trials.neurons = "refinement", len(flat(start.lists))
    left = refine(start.lists, trials.probe.layers, score, start.threshold)
    return Outcome(flat(left), len(flat(start.lists)), start.round, start.threshold, start.reached)
