"""Which of many prompts stand out, at a stated false-discovery rate.

A score's rank among n ordinary prompts is a conformal p-value. Benjamini and Hochberg's procedure on such p-values
keeps the false-discovery rate, although they share one calibration set (Bates, Candes, Lei, Romano and Sesia, Testing
for outliers with conformal p-values, Annals of Statistics 51, 2023); so it does with Storey's estimate of the share of
ordinary prompts (Storey, Taylor and Siegmund, JRSS B 66, 2004). Both hold over calibration sets, not for each of them.

Ranks have at most n + 1 different p-values, so that counts of them stand for any number of prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

MIDDLE = 0.5  # p-values above it are taken for ordinary prompts' alone


def ordinary_share(counts: Mapping[float, int], above: float = MIDDLE) -> float:
    """Return Storey's estimate of the share of ordinary prompts, (1 + #{p > above}) / (m (1 - above)), at most 1.

    Args:
        counts: p-value -> number of prompts.
        above: 0..1; between two possible p-values the estimate is a little high.

    """
    tests = sum(counts.values())
    high = sum(count for p, count in counts.items() if p > above)
    return min(1.0, (1 + high) / (tests * (1 - above))) if tests else 1.0


def adjusted(counts: Mapping[float, int], ordinary: float = 1.0) -> dict[float, float]:
    """Return the q-value of each p-value: the smallest false-discovery rate at which it is among the found ones.

    Args:
        counts: p-value -> number of prompts.
        ordinary: share of ordinary prompts, 0..1; 1 is Benjamini and Hochberg's own procedure.

    """
    tests = sum(counts.values())
    below, raw = 0, []
    for p in sorted(counts):
        below += counts[p]
        raw.append((p, ordinary * tests * p / below))
    found, least = {}, 1.0
    for p, value in reversed(raw):
        least = min(least, value)
        found[p] = least
    return found


def ties_needed(tests: int, count: int, rate: float, ordinary: float = 1.0) -> int:
    """Return how many prompts must score above all ordinary ones for any to be found.

    Args:
        tests: prompts with a score.
        count: ordinary prompts of the calibration.
        rate: false-discovery rate, 0..1.
        ordinary: share of ordinary prompts.

    """
    return max(1, math.ceil(ordinary * tests / (rate * (count + 1)) - 1e-9))


def calibration_needed(tests: int, found: int, rate: float, ordinary: float = 1.0) -> int:
    """Return how many ordinary prompts it takes to find as few as ``found`` prompts that score above all of them."""
    return max(1, math.ceil(ordinary * tests / (rate * found) - 1 - 1e-9))
