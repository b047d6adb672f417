"""Ranks beyond the highest ordinary prompt, by an assumption: that the upper tail is a generalised Pareto.

Of a threshold that is high enough, exceedances of most distributions are close to one (Balkema and de Haan, 1974;
Pickands, 1975). Whether 32 exceedances are high and many enough is not known from them, so this is used only when it is
asked for, and what follows from it says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .profile import Distribution, ProfileError

SHARE = 0.1  # of ordinary prompts that are the tail
LEAST = 20  # exceedances; fewer say nothing about a shape
SMALLEST = 1e-300  # p-value
DIGITS = 3  # of a p-value, rounded up: a million prompts then have some thousand different ones


@dataclass(frozen=True)
class Tail:
    """A generalised Pareto distribution above a threshold.

    Attributes:
        start: RMS of the threshold.
        share: of ordinary prompts that reach it, counted as a rank is.
        shape: of the fit, at least 0: a tail that ends would give p-values of 0.
        scale: of the fit, RMS.
        count: exceedances that it was fitted to.

    """

    start: float
    share: float
    shape: float
    scale: float
    count: int

    def p_value(self, rms: float) -> float | None:
        """Return the p-value of a score above the threshold, None of one below."""
        if rms <= self.start:
            return None
        beyond = (rms - self.start) / self.scale
        if self.shape > 0:
            log_p = math.log(self.share) - math.log1p(self.shape * beyond) / self.shape
        else:
            log_p = math.log(self.share) - beyond
        if log_p < math.log(SMALLEST):
            return SMALLEST
        p = math.exp(log_p)
        unit = 10.0 ** (math.floor(math.log10(p)) - DIGITS + 1)
        return min(math.ceil(p / unit) * unit, self.share)


def fit_tail(among: Distribution) -> Tail:
    """Fit the tail of ordinary prompts by maximum likelihood; where that gives a tail that ends, an exponential one.

    Raises:
        ProfileError: for too few ordinary prompts.

    """
    from scipy.stats import genpareto

    count = math.floor(SHARE * among.count)
    if count < LEAST:
        raise ProfileError(f"{among.count} ordinary prompts; a tail needs at least {math.ceil(LEAST / SHARE)}")
    start = among.scores[-1 - count]
    above = [score - start for score in among.scores[-count:]]
    mean = math.fsum(above) / count
    if mean <= 0:
        raise ProfileError("the highest ordinary prompts score the same, so they have no tail")
    shape, _, scale = genpareto.fit([value / mean for value in above], floc=0)
    if shape < 0:
        shape, scale = 0.0, 1.0
    return Tail(start, (count + 1) / (among.count + 1), float(shape), float(scale) * mean, count)
