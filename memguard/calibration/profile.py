"""A Profile: what ordinary prompts score by a detector, and the conditions that this holds for."""

from __future__ import annotations

import json
import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path

from ..table import GUARD
from ..troubles import Told
from .conditions import Conditions, Have

SCHEMA = 2  # 1 held a fit instead of the scores
MINIMUM = 50  # prompts; fewer say nothing about the upper tail
GRAVER = 3  # "looks memorized" is said at a rate this many times smaller than "may be memorized"


class ProfileError(Told, ValueError):
    """A profile that cannot be read, or that was made for something else."""


class OldProfile(ProfileError):
    """A profile of an earlier version, which does not hold what a verdict needs now."""


@dataclass(frozen=True)
class Sensitivity:
    """How rarely an ordinary prompt may be flagged.

    Attributes:
        percentile: of ordinary prompts above which a prompt is suspicious, 50..99.99.

    """

    percentile: float = 99.0

    def __post_init__(self) -> None:
        GUARD["sensitivity"].read("sensitivity", self.percentile)

    @property
    def suspicious(self) -> float:
        """Share of ordinary prompts, 0..1, of which "may be memorized" is said at most."""
        return 1 - self.percentile / 100

    @property
    def memorized(self) -> float:
        """Share of ordinary prompts of which "looks memorized" is said at most: a third of that."""
        return self.suspicious / GRAVER


@dataclass(frozen=True)
class Distribution:
    """RMS scores of ordinary prompts, one per prompt.

    Verdicts go by rank alone. The log-normal curve is for drawings and for distances (``zscore``): it is fitted to the
    upper half, because the upper tail is often longer than the lower one.

    Attributes:
        scores: finite, positive, from low to high.

    """

    scores: tuple[float, ...]

    @property
    def count(self) -> int:
        """Number of prompts."""
        return len(self.scores)

    @cached_property
    def median(self) -> float:
        """RMS of the median prompt."""
        return statistics.median(self.scores)

    @cached_property
    def log_median(self) -> float:
        """Median of the logarithms."""
        return statistics.median(map(math.log, self.scores))

    @cached_property
    def log_spread(self) -> float:
        """Root mean square distance from the median of the logarithms above it; 0 where none is above it."""
        logs = [math.log(score) for score in self.scores]
        above = [(value - self.log_median) ** 2 for value in logs if value > self.log_median]
        return math.sqrt(statistics.fmean(above)) if above else 0.0

    def below(self, rms: float) -> int:
        """Return how many prompts score lower."""
        return bisect_left(self.scores, rms)

    def p_value(self, rms: float) -> float:
        """Return (1 + prompts that score at least as high) / (n + 1), the conformal p-value."""
        return (1 + self.count - self.below(rms)) / (self.count + 1)

    def percentile(self, rms: float) -> float:
        """Return 100 (1 - p): the share of prompts that score lower, never beyond what their number supports."""
        return 100 * self.below(rms) / (self.count + 1)

    def limit(self, allowed: int) -> float:
        """Return the RMS above which ``allowed`` prompts lie (fewer where scores are equal)."""
        return self.scores[-1 - allowed]

    def zscore(self, rms: float) -> float:
        """Return the distance from ordinary prompts in standard deviations of the log score, by the fit."""
        return (math.log(max(rms, 1e-12)) - self.log_median) / self.log_spread


@dataclass(frozen=True)
class Profile:
    """Distributions per detector under one set of conditions."""

    conditions: Conditions
    distributions: dict[str, Distribution]
    note: str = ""
    source: str = field(default="", compare=False)  # the file it was read from

    def to_json(self) -> str:
        """Return the profile as JSON text with its schema version."""
        values = asdict(self)
        del values["source"]
        return json.dumps({"schema": SCHEMA, **values}, indent=1, allow_nan=False)

    @classmethod
    def read(cls, path: str | Path) -> Profile:
        """Read a profile file.

        Raises:
            ProfileError: with the file's name and what is wrong with it.

        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["schema"] == 1:
                raise OldProfile(f"{path}: made by an older version of MemGuard; calibrate again")
            if values["schema"] != SCHEMA:
                raise ProfileError(f"{path}: profile schema {values['schema']!r:.40}, this memguard reads {SCHEMA}")
            conditions = {f.name: values["conditions"][f.name] for f in fields(Conditions)}
            conditions["latent"] = tuple(conditions["latent"])
            distributions = {
                str(name): Distribution(tuple(float(score) for score in d["scores"]))
                for name, d in values["distributions"].items()
            }
            profile = cls(Conditions(**conditions), distributions, values.get("note", ""), str(path))
            wrong = profile._wrong()
        except ProfileError:
            raise
        except OSError as error:
            raise ProfileError(f"{path}: cannot be read ({error.strerror}); run memguard calibrate") from None
        except KeyError as error:
            wrong = f"{error} is missing"
        except RecursionError:
            wrong = "nested too deeply"
        except ValueError:  # JSON, UTF-8, a number
            wrong = "no JSON, or a text where a number belongs"
        except (TypeError, AttributeError, OverflowError):
            wrong = "a value is of another kind than profiles hold"
        if wrong is not None:
            raise ProfileError(f"{path}: not a memguard profile ({wrong}); run memguard calibrate again")
        return profile

    def _wrong(self) -> str | None:
        """Return what no calibration writes and what would fail only when a run is judged."""
        wrong = self.conditions.wrong() if isinstance(self.note, str) else "note is no text"
        for name, d in self.distributions.items():
            if not all(math.isfinite(score) and score > 0 for score in d.scores):
                wrong = f"a score of {name} is not finite and positive"
            elif list(d.scores) != sorted(d.scores):
                wrong = f"the scores of {name} are not sorted"
            else:
                wrong = wrong or unfit(d.scores)
        return wrong

    def mismatch(self, have: Have) -> str | None:
        """Return why this profile does not hold for a run, or None if it does."""
        return next(iter(self.conditions.differences(have)), None)


def unfit(scores: Sequence[float]) -> str | None:
    """Return why scores, from low to high, make no distribution."""
    if len(scores) < MINIMUM:
        return f"{len(scores)} prompts with a score; a profile needs at least {MINIMUM}"
    if scores[-1] <= statistics.median(scores):
        return "half of the prompts or more score the same, and none scores higher: nothing can stand out"
    return None


def fit(rms: Sequence[float]) -> Distribution:
    """Return the distribution of the RMS scores of ordinary prompts, one per prompt.

    Raises:
        ProfileError: for fewer than 50 finite positive scores, and for scores that are all equal.

    """
    usable = tuple(sorted(float(value) for value in rms if math.isfinite(value) and value > 0))
    wrong = unfit(usable)
    if wrong is not None:
        raise ProfileError(wrong)
    return Distribution(usable)
