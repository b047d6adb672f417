"""False-positive rates by rank: what a number of ordinary prompts can show, and how sure one may be of it.

Under exchangeability an ordinary prompt has (1 + ordinary prompts that score at least as high) / (n + 1) at or below a
rate with that probability at most (conformal prediction: Vovk, Gammerman and Shafer, 2005). For the very profile at
hand the rate of a cut at its (k + 1)-th highest score is distributed as Beta(k + 1, n - k); its upper 95 % point is
Clopper and Pearson's bound of k in n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

CONFIDENCE = 0.95
_SLACK = 1e-9  # 1 - 0.99 is a little more than 0.01 in floating point, 1 - 0.9 a little less than 0.1


@dataclass(frozen=True)
class Cut:
    """A place in the ranking of ordinary prompts from which a prompt stands out.

    Attributes:
        allowed: ordinary prompts that may score at least as high.
        rate: share of ordinary prompts that stand out by mistake, (allowed + 1) / (n + 1).
        bound: the share for this very profile is at most this, with 95 % confidence.

    """

    allowed: int
    rate: float
    bound: float


def cut(rate: float, count: int) -> Cut | None:
    """Return the lowest cut whose rate is at most the asked one, or None where that takes more ordinary prompts.

    Args:
        rate: share of ordinary prompts, 0..1.
        count: ordinary prompts in the profile.

    """
    allowed = min(math.floor(rate * (count + 1) + _SLACK) - 1, count - 1)
    return None if allowed < 0 else at(allowed, count)


def at(allowed: int, count: int) -> Cut:
    """Return the cut above which ``allowed`` of ``count`` ordinary prompts lie."""
    return Cut(allowed, (allowed + 1) / (count + 1), bound(allowed, count))


def needed(rate: float) -> int:
    """Return how many ordinary prompts it takes to show a rate."""
    return math.ceil(1 / rate - _SLACK) - 1


@lru_cache(maxsize=256)
def bound(above: int, count: int, confidence: float = CONFIDENCE) -> float:
    """Return the rate at which no more than ``above`` of ``count`` are seen in 1 - confidence of all cases."""
    if above >= count:
        return 1.0
    low, high = above / count, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _no_more(above, count, middle) > 1 - confidence else (low, middle)
    return high


def _no_more(above: int, count: int, rate: float) -> float:
    """Return the probability of at most ``above`` successes of ``count`` (binomial)."""
    if rate >= 1:
        return 0.0
    logs = math.log(rate), math.log1p(-rate)
    every = math.lgamma(count + 1)
    return math.fsum(
        math.exp(every - math.lgamma(k + 1) - math.lgamma(count - k + 1) + k * logs[0] + (count - k) * logs[1])
        for k in range(above + 1)
    )
