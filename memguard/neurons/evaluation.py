"""Trials: how similar the noise difference stays when some neurons are blocked, for many sets at once.

delta = noise prediction - noise, scaled to [0, 1] per picture and channel; a trial is the MS-SSIM of delta without
and with blocking, per seed. Every result is kept, so that nothing is evaluated twice, also after a cancelled run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle

import torch
from torch import Tensor

from ..troubles import Refused
from .msssim import batch_spans, ms_ssim
from .probe import Neuron, Probe
from .state import State

ONES = (1.0, 1.0, 1.0)
ROWS = 16  # of one forward, unless the caller knows better; halved when memory runs out

Blocked = frozenset[Neuron]
Find = Callable[["Trials", Blocked, int, float], dict[str, Tensor]]


@dataclass(frozen=True)
class Progress:
    """How far a search is: what it does, how many rows it took, how many neurons the best set holds (None: no set)."""

    stage: str
    rows: int
    neurons: int | None = None


def difference(noise: Tensor, x: Tensor) -> Tensor:
    """Return noise - x, each channel of each row scaled to [0, 1], float32 [R, C, h, w]; 0 for a constant channel."""
    found = noise.float() - x.float()
    low, high = found.amin((2, 3), keepdim=True), found.amax((2, 3), keepdim=True)
    return (found - low) / torch.where(high > low, high - low, 1.0)


def similarity_of_seeds(deltas: Tensor, parity: str | None = None) -> list[float]:
    """Return, for each row, its largest MS-SSIM with another row (NeMo's memorization score); none for a single row."""
    pairs = list(combinations(range(len(deltas)), 2))
    if not pairs:
        return []
    first, second = ([p[i] for p in pairs] for i in (0, 1))
    spans = batch_spans(deltas[first], deltas[second]) if parity else ONES
    scores = ms_ssim(deltas[first], deltas[second], spans).tolist()
    return [max(s for s, pair in zip(scores, pairs, strict=True) if row in pair) for row in range(len(deltas))]


class Trials:
    """Evaluates blocked sets on one prompt.

    Args:
        probe: the prompt and its model.
        parity: "official" for its noise, its timestep and its MS-SSIM.
        scale: factor on blocked neurons.
        batch: rows of one forward.
        state: results that are known already; new ones are added.
        progress: called after each evaluation.
        cancel: called before each evaluation; what it raises ends the search.

    Attributes:
        images: the seeds that count, chosen by ``keep``.
        whole: whether ``scores`` evaluates the other seeds too, as the official code does, and leaves them out.
        stage: what the search is doing, for ``progress``.
        neurons: size of the best set so far, for ``progress``.

    """

    def __init__(
        self,
        probe: Probe,
        parity: str | None = None,
        scale: float = 0.0,
        batch: int = ROWS,
        state: State | None = None,
        progress: Callable[[Progress], None] | None = None,
        cancel: Callable[[], object] | None = None,
    ) -> None:
        self.probe, self.parity, self.scale, self.batch = probe, parity, scale, batch
        self.state = state or State()
        self.progress, self.cancel = progress, cancel
        self.x, self.t = probe.start(parity)
        self.images: tuple[int, ...] = tuple(range(len(self.x)))
        self.stage = "predictions without blocking"
        self.neurons: int | None = None
        self.whole = False
        self._asked: dict[tuple[object, ...], int] = {}

    @property
    def rows(self) -> int:
        """UNet rows spent, with those of the run that is continued."""
        return self.state.spent(self.probe.rows).total

    @property
    def asked(self) -> int:
        """Rows that this search has asked for, known or not: a search that is continued decides as the first did."""
        return sum(self._asked.values())

    @property
    def unblocked(self) -> Tensor:
        """The noise differences of all seeds without blocking, float32 [n, C, h, w]."""
        if self.state.unblocked is None:
            self.state.unblocked = self.predict([frozenset()] * len(self.x)).cpu()
            self._done()
        return self.state.unblocked.to(self.x.device)

    def keep(self, images: Sequence[int]) -> None:
        """Let only some seeds count from now on."""
        self.images = tuple(images)

    def predict(self, sets: Sequence[Blocked]) -> Tensor:
        """Return the noise differences of all seeds, each with its own blocked set, float32 [n, C, h, w]."""
        return self._deltas(list(zip(sets, range(len(self.x)), strict=True)))

    def score(self, blocked: Iterable[Neuron]) -> float:
        """Return the score of a set: the largest similarity over the seeds that count."""
        return max(self.scores(frozenset(blocked)))

    def scores(self, blocked: Blocked) -> list[float]:
        """Return the similarity of each seed that counts, as NeMo measures it: all seeds are one batch."""
        if self.parity is None and not self.whole:
            return self.singles([blocked], self.images)[0]
        kept = list(self.images)
        self._asked[blocked, self.images] = len(self.x) if self.whole else len(kept)
        known = self.state.get(blocked, self.images)
        if known is None:
            before = self.unblocked[kept]
            after = (
                self.predict([blocked] * len(self.x))[kept]
                if self.whole
                else self._deltas([(blocked, i) for i in kept])
            )
            known = ms_ssim(before, after, batch_spans(before, after) if self.parity else ONES).tolist()
            self.state.put(blocked, self.images, known)
            self._done()
        return known

    def singles(self, sets: Sequence[Blocked], images: Sequence[int]) -> list[list[float]]:
        """Return the similarity per set and seed, evaluated together as rows of one batch, each known once and for all.

        With ``parity`` the dynamic ranges are those of the unblocked differences; they differ from those of ``scores``
        where blocking widens the range.

        Raises:
            ValueError: if a prediction holds NaN or infinity.

        """
        self._asked |= {(s, i): 1 for s in sets for i in images}
        new = [(s, i) for s in dict.fromkeys(sets) for i in images if self.state.get(s, (i,)) is None]
        if new:
            before = self.unblocked
            spans = batch_spans(before[list(self.images)]) if self.parity else ONES
            found = ms_ssim(before[[i for _, i in new]], self._deltas(new), spans).tolist()
            for (blocked, image), score in zip(new, found, strict=True):
                self.state.put(blocked, (image,), [score])
            self._done()
        return [[(self.state.get(s, (i,)) or [1.0])[0] for i in images] for s in sets]

    def gradients(
        self, blocked: Blocked, images: Sequence[int], gates: Sequence[float], find: Find
    ) -> dict[str, Tensor]:
        """Return the mean of ``find(self, blocked, image, gate)`` over pictures, which take the gates in turn."""
        found = []
        for image, gate in zip(images, cycle(gates), strict=False):
            self._asked["gradient", blocked, image] = 1
            known = self.state.ranking(blocked, image)
            if known is None:
                if self.cancel is not None:
                    self.cancel()
                known = find(self, blocked, image, gate)
                self.state.rank(blocked, image, known)
                self._done()
            found.append(known)
        return {name: torch.stack([values[name] for values in found]).mean(0) for name in self.probe.layers}

    def _done(self) -> None:
        self.state.save(self.probe.rows)
        if self.progress is not None:
            self.progress(Progress(self.stage, self.rows, self.neurons))

    def _deltas(self, rows: list[tuple[Blocked, int]]) -> Tensor:
        """Predict rows of (blocked set, seed), as many at once as memory takes."""
        found: list[Tensor] = []
        while rows:
            if self.cancel is not None:
                self.cancel()
            now, rows = rows[: self.batch], rows[self.batch :]
            x = self.x[[image for _, image in now]]
            try:
                with torch.no_grad():
                    noise = self.probe.noise(x, self.t, self.masks([blocked for blocked, _ in now]))
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                self.batch, rows = max(1, min(self.batch, len(now)) // 2), now + rows
                continue
            if not bool(torch.isfinite(noise).all()):
                raise Refused("the model's prediction holds NaN or infinity; run the model in float32")
            found.append(difference(noise, x))
        return torch.cat(found)

    def masks(self, sets: Sequence[Blocked]) -> dict[str, Tensor]:
        """Return the factors of one row per set; layers that no set names are left out."""
        named = {layer for blocked in sets for layer, _ in blocked}
        found = {}
        for layer in (name for name in self.probe.layers if name in named):
            factors = torch.ones(len(sets), self.probe.layers[layer])
            for row, blocked in enumerate(sets):
                factors[row, [index for name, index in blocked if name == layer]] = self.scale
            found[layer] = factors.to(self.x.device)
        return found
