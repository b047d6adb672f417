"""The fast search: a set at the official score, mostly not larger, at about a tenth of the rows where they are many.

What makes it cheap: candidates are ranked by a backward pass instead of tried in the order of their indices; heads
of the ranking and groups are tested instead of single neurons, many as rows of one batch; and a set is tried first
on the seed whose noise difference is hardest to change, since the score is the largest over the seeds. What passes
there is verified on all seeds. The candidates are NeMo's, from the same round of the sweep.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nan_to_num

from .attribution import GATES, gate_gradients
from .evaluation import Blocked, Trials
from .grouping import TESTS, first, one_by_one, prune, shortest
from .outcome import Outcome, by_layer, flat
from .probe import Neuron, NoGradient
from .refinement import refine
from .selection import Lists, Round

log = logging.getLogger("memguard")

PICTURES = 4  # that the attribution is the mean of
FEW = 4  # seeds that are looked at first when a set is verified
SHARE = 0.1  # of the rows of going through all candidates one by one: what a large set may take
LEAST = 150  # rows that it may take in any case, so that a middling set is not left large
EPSILON = 1e-6
TRIES = 6  # each failed verification adds a seed that sets are tried on


def search(
    trials: Trials,
    select: Callable[[Round], Lists],
    rounds: Sequence[Round],
    zscores: Mapping[str, Tensor],
    limit: float,
) -> Outcome:
    """Return neurons whose blocking brings the score to ``limit``, or to what all candidates reach.

    Args:
        trials: the prompt; its seeds are chosen.
        select: the candidates of a round.
        rounds: of the sweep, narrowest first.
        zscores: layer -> [width], the ranking where the model has no gradients.
        limit: the threshold asked for.

    """
    trials.stage = "selection"
    sets = [flat(select(r)) for r in rounds]
    screen = _Screen(trials, limit)
    reached = screen.start(sets[-1])
    pool = sets[-1]
    if reached:
        pool = screen.verified(lambda: sets[first(lambda ps: screen.passes([sets[p] for p in ps]), len(sets))], pool)
    order, notes = sorted(pool), ()  # type: list[Neuron], tuple[str, ...]
    if len(pool) > TESTS:
        order, notes = _rank(trials, pool, screen.order[:PICTURES], zscores)
    trials.stage = "refinement"
    wanted = screen.limit
    for _ in range(TRIES):
        best = _shrunk(trials, screen, pool, order, bool(notes))
        over = max(trials.scores(best)) - wanted
        if over <= 0:
            break
        screen.limit -= (
            over + EPSILON
        )  # the official measure, over all seeds at once, is a little stricter and has the last word
    else:
        best = next(known for known in (pool, sets[-1]) if max(trials.scores(known)) <= wanted)
    return Outcome(best, len(pool), rounds[sets.index(pool)], wanted, reached, notes)


def _shrunk(trials: Trials, screen: _Screen, pool: Blocked, order: list[Neuron], exact: bool) -> Blocked:
    """Return the shortest head of a ranking that is enough, without what is not needed there."""
    best = pool
    if len(pool) > TESTS:
        best = screen.verified(lambda: frozenset(shortest(order, screen.passes)), pool)
    left = [neuron for neuron in order if neuron in best]
    return screen.verified(lambda: _fewest(trials, screen, pool, left, exact), best)


def _fewest(trials: Trials, screen: _Screen, pool: Blocked, order: list[Neuron], exact: bool) -> Blocked:
    """Return what group testing leaves of a ranked set; a small pool is refined as NeMo does it, on the hard seeds.

    Without a gradient (``exact``) the ranking says little, and only going through the whole set makes it small.
    """
    allowance = max(LEAST, (1.0 if exact else SHARE) * len(pool) * len(trials.images))

    def afford(questions: int) -> bool:
        verifying = 2 * len(trials.images)
        return trials.asked + questions * len(screen.leads) + verifying <= allowance

    if len(pool) <= TESTS:
        lists = {name: list(indices) for name, indices in by_layer(pool, trials.probe.layers).items()}
        return flat(refine(lists, trials.probe.layers, lambda left: screen.scores([flat(left)])[0], screen.limit))
    left = prune(order, screen.scores, screen.limit, afford)[::-1]
    return frozenset(one_by_one(left, screen.scores, screen.limit) if len(left) <= TESTS else left)


def _rank(
    trials: Trials, pool: Blocked, images: Sequence[int], zscores: Mapping[str, Tensor]
) -> tuple[list[Neuron], tuple[str, ...]]:
    """Return the candidates, the most important first, and what there is to say about it."""
    trials.stage = "ranking"
    notes: tuple[str, ...] = ()
    try:
        values: Mapping[str, Tensor] = trials.gradients(pool, images, GATES, gate_gradients)
    except NoGradient as reason:
        notes = (
            f"no gradient, so candidates are ranked by their z-score: {reason}; load the model in float16 or wider",
        )
        log.warning("memguard: %s", notes[0])
        values = {name: nan_to_num(z) for name, z in zscores.items()}
    return sorted(sorted(pool), key=lambda neuron: -float(values[neuron[0]][neuron[1]])), notes


class _Screen:
    """Tries sets on the hardest seeds, and verifies what passes there on all.

    Attributes:
        limit: the score to stay at or below.
        order: the seeds, the hardest to change first.
        leads: those of them that sets are tried on.

    """

    def __init__(self, trials: Trials, limit: float) -> None:
        self.trials, self.limit = trials, limit
        self.order: list[int] = []
        self.leads: list[int] = []
        self._refused: set[Blocked] = set()

    def start(self, widest: Blocked) -> bool:
        """Learn from the widest set which seeds are hard; return whether it is enough, else it is the new limit."""
        scores = self.trials.scores(widest)
        self.order = [image for _, image in sorted(zip(scores, self.trials.images, strict=True), reverse=True)]
        self.leads = self.order[:1]
        reached = max(scores) <= self.limit
        self.limit = self.limit if reached else max(scores)
        return reached

    def scores(self, sets: list[Blocked]) -> list[float]:
        """Return the score of each set on the tried seeds, up to the first that fails; infinity if it was refused."""
        found = {blocked: math.inf if blocked in self._refused else 0.0 for blocked in sets}
        for lead in self.leads:
            left = [blocked for blocked, score in found.items() if score <= self.limit]
            for blocked, score in zip(left, self.trials.singles(left, [lead]), strict=True):
                found[blocked] = max(found[blocked], *score)
        return [found[blocked] for blocked in sets]

    def passes(self, sets: list[Blocked]) -> list[bool]:
        """Return which sets are enough, as far as the tried seeds can tell."""
        return [score <= self.limit for score in self.scores(sets)]

    def verified(self, find: Callable[[], Blocked], known: Blocked) -> Blocked:
        """Return what ``find`` finds once it is enough on all seeds; ``known`` where that does not come about."""
        for _ in range(TRIES):
            found = find()
            worst = self._worst(found)
            if worst is None:
                self.trials.neurons = len(found)
                return found
            if worst in self.leads:
                self._refused.add(found)
            else:
                self.leads.append(worst)
        return known

    def _worst(self, blocked: Blocked) -> int | None:
        """Return the seed on which a set fails most, of the first few where one fails; None if it is enough on all."""
        for images in (self.order[:FEW], self.order[FEW:]):
            scores = self.trials.singles([blocked], images)[0]
            if images and max(scores) > self.limit:
                return images[scores.index(max(scores))]
        return None
