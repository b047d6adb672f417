"""Scores as ordinary prompts have them: the quantiles of a log-normal distribution."""

import math
import statistics


def spread(median: float, log_spread: float = 0.2, count: int = 320) -> list[float]:
    """Return that many RMS scores, from low to high."""
    z = statistics.NormalDist().inv_cdf
    return [median * math.exp(log_spread * z((i + 0.5) / count)) for i in range(count)]
