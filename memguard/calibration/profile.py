"""A Profile: the distribution of a detector's score over ordinary prompts, and the conditions it holds for.

May import: memguard.troubles and the standard library.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..troubles import Told

SCHEMA = 1
MINIMUM = 50  # prompts; fewer say nothing about the upper tail
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
SIGMA_RATIO = 1.25  # a profile is used for runs whose first sigma is within this ratio of its own


class ProfileError(Told, ValueError):
    """A profile that cannot be read, or that was made for something else."""


@dataclass(frozen=True)
class Sensitivity:
    """How high above ordinary prompts a score must be.

    Attributes:
        percentile: of ordinary prompts above which a prompt is suspicious, 50..99.99.

    """

    percentile: float = 99.0

    def __post_init__(self) -> None:
        if not 50 <= self.percentile <= 99.99:
            raise ValueError(f"sensitivity is {self.percentile}; give a percentile between 50 and 99.99")

    @property
    def suspicious(self) -> float:
        """Z-score from which a prompt is suspicious."""
        return statistics.NormalDist().inv_cdf(self.percentile / 100)

    @property
    def memorized(self) -> float:
        """Z-score from which a prompt looks memorized: one standard deviation further."""
        return self.suspicious + 1


@dataclass(frozen=True)
class Conditions:
    """What a profile was measured under.

    Attributes:
        model: fingerprint of the checkpoint.
        family: its architecture.
        latent: height and width of the latents.
        sigma: noise level of the first scored step.
        timestep: the same on the training schedule.
        steps_scored: number of model calls that a score is the mean of.
        num_steps: sampling steps of the run.
        scheduler: class of the sampler.
        reference: what prompts were compared with.
        dtype: of the model's weights.
        guidance_scale: of the run.

    """

    model: str
    family: str
    latent: tuple[int, int]
    sigma: float
    timestep: float | None
    steps_scored: int
    num_steps: int
    scheduler: str
    reference: str
    dtype: str
    guidance_scale: float


@dataclass(frozen=True)
class Distribution:
    """RMS scores of ordinary prompts, one per prompt, fitted log-normally to their upper half.

    Only the upper tail decides, and it is often longer than the lower one; a fit to both would flag too many.

    Attributes:
        count: number of prompts.
        log_median: median of the logarithms.
        log_spread: root mean square distance from it of the logarithms above it.
        quantiles: of the scores themselves.

    """

    count: int
    log_median: float
    log_spread: float
    quantiles: dict[str, float]

    def zscore(self, rms: float) -> float:
        """Return the distance from ordinary prompts in standard deviations of the log score."""
        return (math.log(max(rms, 1e-12)) - self.log_median) / self.log_spread

    def percentile(self, rms: float) -> float:
        """Return the share of ordinary prompts that score lower, 0..100, by the log-normal fit."""
        return 100 * statistics.NormalDist().cdf(self.zscore(rms))

    def threshold(self, zscore: float) -> float:
        """Return the RMS at a z-score."""
        return math.exp(self.log_median + zscore * self.log_spread)


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
        return json.dumps({"schema": SCHEMA, **values}, indent=2, allow_nan=False)

    @classmethod
    def read(cls, path: str | Path) -> Profile:
        """Read a profile file.

        Raises:
            ProfileError: with the file's name and what is wrong with it.

        """
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["schema"] != SCHEMA:
                raise ProfileError(f"{path}: profile schema {values['schema']}, this memguard reads {SCHEMA}")
            conditions = {f.name: values["conditions"][f.name] for f in fields(Conditions)}
            conditions["latent"] = tuple(conditions["latent"])
            distributions = {name: Distribution(**d) for name, d in values["distributions"].items()}
            profile = cls(Conditions(**conditions), distributions, values.get("note", ""), str(path))
            profile._check()
            return profile
        except ProfileError:
            raise
        except OSError as error:
            raise ProfileError(f"{path}: cannot be read ({error.strerror}); run memguard calibrate") from None
        except (OverflowError, RecursionError):
            raise ProfileError(f"{path}: not a memguard profile (a number or a nest is too large)") from None
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # also JSONDecodeError, UnicodeDecodeError
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ProfileError(f"{path}: not a memguard profile ({what}); run memguard calibrate again") from None

    def _check(self) -> None:
        """Raise ValueError for numbers that no calibration writes and that would fail only when a run is judged."""
        c = self.conditions
        if not (c.sigma > 0 and c.steps_scored >= 1 and len(c.latent) == 2 and min(c.latent) > 0):
            raise ValueError("sigma, steps_scored and latent must be positive")
        if not all(isinstance(text, str) for text in (c.model, c.family, c.scheduler, c.reference, c.dtype, self.note)):
            raise ValueError("model, family, scheduler, reference, dtype and note must be texts")
        if not all(map(math.isfinite, (c.sigma, c.steps_scored, *c.latent))):
            raise ValueError("sigma, steps_scored and latent must be finite")
        for name, d in self.distributions.items():
            if not (d.log_spread > 0 and math.isfinite(d.log_median) and math.isfinite(d.log_spread)):
                raise ValueError(f"the distribution of {name} is not finite")

    def mismatch(self, have: dict[str, Any]) -> str | None:
        """Return why this profile does not hold for a run, or None if it does.

        Args:
            have: model, sigma, steps_scored and reference of the run.

        """
        want = self.conditions
        if have["model"] and want.model != have["model"]:
            return f"the profile is for model {want.model}, this is {have['model']}; run memguard calibrate"
        if want.reference != have["reference"]:
            return f"the profile compares with the {want.reference} prompt, this run with the {have['reference']} one"
        if want.steps_scored != have["steps_scored"]:
            return f"the profile scores {want.steps_scored} step(s), this run {have['steps_scored']}"
        if have["sigma"] is not None and abs(math.log(have["sigma"] / want.sigma)) > math.log(SIGMA_RATIO):
            return f"the profile is for sigma {want.sigma:.3g}, this run starts at {have['sigma']:.3g}"
        return None


def fit(rms: Sequence[float]) -> Distribution:
    """Fit the RMS scores of ordinary prompts, one per prompt.

    Raises:
        ProfileError: for fewer than 50 finite positive scores.

    """
    usable = [value for value in rms if math.isfinite(value) and value > 0]
    if len(usable) < MINIMUM:
        raise ProfileError(f"{len(usable)} prompts with a score; a profile needs at least {MINIMUM}")
    logs = [math.log(value) for value in usable]
    percentiles = statistics.quantiles(usable, n=100, method="inclusive")  # linear between ranks, as numpy does
    quantiles = {f"{q:g}": percentiles[round(100 * q) - 1] for q in QUANTILES}
    median = statistics.median(logs)
    above = [(value - median) ** 2 for value in logs if value > median]
    spread = max(math.sqrt(statistics.fmean(above)) if above else 0.0, 1e-6)
    return Distribution(len(usable), median, spread, quantiles)
