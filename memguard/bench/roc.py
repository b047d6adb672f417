"""Area under the ROC curve and true positive rate at a false positive rate, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(positives: np.ndarray, negatives: np.ndarray) -> float:
    """Return the probability that a positive scores higher than a negative; ties count half."""
    ranked = np.sort(negatives)
    below = np.searchsorted(ranked, positives, "left")
    upto = np.searchsorted(ranked, positives, "right")
    return float((below + upto).sum() / 2 / (len(positives) * len(negatives)))


def tpr_at_fpr(positives: np.ndarray, negatives: np.ndarray, rate: float = 0.01) -> float:
    """Return the share of positives above the threshold that at most ``rate`` of the negatives exceed."""
    allowed = int(np.floor(rate * len(negatives) + 1e-9))  # 0.29 * 100 is a little less than 29
    threshold = np.sort(negatives)[::-1][allowed]
    return float((positives > threshold).mean())


def bootstrap(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    positives: Sequence[float],
    negatives: Sequence[float],
    rounds: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Return a statistic of two samples with its percentile-bootstrap interval, resampling prompts.

    Where the samples are separated perfectly the bootstrap interval has no width; the lower end is then the one-sided
    95 % bound of a proportion that never failed, 0.05 ** (1 / n) for the smaller sample.

    Raises:
        ValueError: if a sample is empty.

    """
    high, low = np.asarray(positives, float), np.asarray(negatives, float)
    if not len(high) or not len(low):
        raise ValueError("ROC figures need at least one positive and one negative score")
    rng = np.random.default_rng(seed)
    draws = [statistic(rng.choice(high, len(high)), rng.choice(low, len(low))) for _ in range(rounds)]
    value = statistic(high, low)
    lower, upper = (float(v) for v in np.percentile(draws, [2.5, 97.5]))
    if lower == upper == 1.0:
        lower = 0.05 ** (1 / min(len(high), len(low)))
    return Estimate(value, lower, upper)
