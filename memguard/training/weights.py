"""From a sample's score to its weight in the loss, and what became of each sample."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from ..troubles import Refused
from .log import Log

Above = Literal["skip", "scale"]
Threshold = float | Mapping[float, float]
ABOVE = ("skip", "scale")
IN_A_ROW = 5  # steps without a sample, after which it is said
IDLE = 100  # steps in which nothing is judged, after which it is said; at high noise only, a few are ordinary

log = logging.getLogger("memguard")


@dataclass
class Seen:
    """What became of one picture.

    Attributes:
        count: how often it was judged.
        above: how often it scored above the threshold.
        highest: its highest score; NaN until it had one.

    """

    count: int = 0
    above: int = 0
    highest: float = math.nan


class Filter:
    """Gives each sample of a batch a weight by its score.

    Args:
        threshold: a score above it looks memorized; or one for each noise level, {timestep from which it holds:
            threshold}, since scores differ more by noise level than by sample; nothing is judged below the lowest.
            Levels are in the units of the loop's timesteps, 0..1 where these are divided by 1000.
        above: what happens then: "skip" leaves the sample out of this step, "scale" gives it threshold / score.
        log: takes the mean score and the share above, step by step; None keeps no log.

    Attributes:
        seen: what became of each picture, by the name that was given for it.

    Raises:
        Refused: for a threshold that is not above 0, or another ``above``.

    """

    NAME = ""

    def __init__(self, threshold: Threshold, above: Above = "skip", log: Log | None = None) -> None:
        levels = _levels(threshold)
        if not levels or not all(_positive(each) for each in levels.values()):
            raise Refused(f"threshold is {threshold!r}; give a number above 0, or one for each noise level")
        if above not in ABOVE:
            raise Refused(f"above is {above!r}; use one of {', '.join(ABOVE)}")
        self.levels = {level: float(levels[level]) for level in sorted(levels)}
        self.threshold, self.above, self.log = threshold, above, log
        self.seen: dict[Any, Seen] = {}
        self.steps = 0
        self._empty = 0  # steps in a row of which every sample was left out
        self._warned_empty = False
        self._idle = 0  # steps in a row in which none was judged
        self._warned_idle = False

    def weigh(self, scores: Tensor, names: Sequence[Any] | None = None, timesteps: Tensor | None = None) -> Tensor:
        """Return the weights of samples, float32 [B] in 0..1, on the scores' device.

        Args:
            scores: [B]; NaN for a sample that is not judged, which has weight 1.
            names: of the pictures, or their numbers, to know afterwards which were left out.
            timesteps: [B]; needed where each noise level has a threshold.

        """
        scores = scores.detach().float()
        if names is not None and len(names) != len(scores):
            raise Refused(f"{len(names)} names for {len(scores)} samples; give one for each")
        limits = self._limits(scores, timesteps)
        scores = torch.where(limits.isnan(), math.nan, scores)
        over = scores > limits
        weights = torch.ones_like(scores)
        weights[over] = 0.0 if self.above == "skip" else limits[over] / scores[over]
        self._note(scores, over, names)
        return weights

    def _limits(self, scores: Tensor, timesteps: Tensor | None) -> Tensor:
        limits = torch.full_like(scores, math.nan)  # below the lowest level
        if timesteps is None:
            if list(self.levels) != [0]:
                raise Refused("there is a threshold for each noise level; give the timesteps of the samples")
            timesteps = torch.zeros_like(scores)
        for level, threshold in self.levels.items():
            limits[timesteps.to(scores.device) >= level] = threshold
        return limits

    def _note(self, scores: Tensor, over: Tensor, names: Sequence[Any] | None) -> None:
        values, high = scores.tolist(), over.tolist()
        known = [value for value in values if not math.isnan(value)]
        # a tensor's elements are no keys: two of one number are not equal as such
        listed = getattr(names, "tolist", lambda: names or ())()
        for name, value, above in zip(listed, values, high, strict=names is not None):
            if math.isnan(value):
                continue
            entry = self.seen.setdefault(name, Seen())
            entry.count += 1
            entry.above += above
            entry.highest = value if math.isnan(entry.highest) else max(entry.highest, value)
        self._watch(known, all(high))
        if self.log is not None and known:
            self.log.add(self.steps, {f"{self.NAME}/score": math.fsum(known) / len(known)})
            self.log.add(self.steps, {f"{self.NAME}/above": sum(high) / len(known)})
        self.steps += 1

    def _watch(self, known: Sequence[float], every: bool) -> None:
        """Warn once if nothing is left to learn from, as the loss is 0 then, and once if nothing is ever judged."""
        self._idle = 0 if known else self._idle + 1
        if self._idle == IDLE and not self._warned_idle:
            self._warned_idle = True
            log.warning(
                "%s judged no sample of %d steps in a row: their timesteps are below what is judged, or their scores"
                " are not finite; give noise levels in the units of the timesteps",
                *(self.NAME, IDLE),
            )
        self._empty = self._empty + 1 if known and every and self.above == "skip" else 0
        if self._empty == IN_A_ROW and not self._warned_empty:
            self._warned_empty = True
            log.warning(
                "%s left out every sample of %d steps in a row (scores up to %.3g, threshold %s): nothing is learned"
                " there; measure the threshold on ordinary samples",
                *(self.NAME, IN_A_ROW, max(known), self.threshold),
            )

    def left_out(self) -> list[tuple[Any, Seen]]:
        """Return the pictures that scored above the threshold, those first that did so most often."""
        found = [(name, entry) for name, entry in self.seen.items() if entry.above]
        return sorted(found, key=lambda item: (-item[1].above / item[1].count, -item[1].highest))


def _levels(threshold: Any) -> dict[float, Any]:
    """Return the threshold from each timestep on; none where one of the levels is no number."""
    given = threshold if isinstance(threshold, Mapping) else {0: threshold}
    try:
        # of words too, as JSON has them
        found = {float(level): value for level, value in given.items()}
    except (TypeError, ValueError):
        return {}
    return {} if any(map(math.isnan, found)) else found


def _positive(given: Any) -> bool:
    # numpy's numbers are Real and no float
    return not isinstance(given, bool) and isinstance(given, Real) and 0 < float(given) < math.inf


def per_sample(timesteps: Any, count: int, device: torch.device) -> Tensor:
    """Return the timestep of each sample, [B].

    Raises:
        Refused: for what is no tensor of B timesteps, or of one for all.

    """
    if not isinstance(timesteps, Tensor):
        raise Refused(f"timesteps is {timesteps!r}; give a tensor of the {count} samples' timesteps, or of one for all")
    if timesteps.ndim > 1 or timesteps.numel() not in (1, count):
        raise Refused(f"timesteps is of shape {list(timesteps.shape)}; there are {count} samples: give [{count}]")
    return timesteps.to(device).expand(count)


def weighted(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the mean loss over a batch, each sample with its weight, a scalar.

    It is divided by the number of samples, those left out among them: they add nothing, and the others count as they
    would without a filter, whatever the gradients are accumulated over. The gradient of a sample of weight 0 is exactly
    0, also where its loss overflows; where its prediction itself is infinite or NaN, it is NaN.

    Args:
        losses: [B] or [B, ...], not reduced.
        weights: [B].

    Raises:
        Refused: for a loss that is reduced, and if the numbers of samples differ.

    """
    if losses.ndim == 0:
        raise Refused("the loss is one number for the batch; give that of each sample: reduction='none'")
    if weights.ndim != 1:
        raise Refused(f"weights are of shape {list(weights.shape)}; give one for each sample, [B]")
    if len(losses) != len(weights):
        raise Refused(f"{len(weights)} weights for {len(losses)} losses; give the loss of each sample, not reduced")
    rows = losses.flatten(1).mean(1) if losses.ndim > 1 else losses
    weights = weights.to(rows)
    # not multiplied alone: 0 times an infinite loss, as half precision gives it, is NaN
    return torch.where(weights == 0, 0, rows * weights).sum() / len(rows)
