"""What a profile was measured under, and how a run may differ from it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

# A profile is used for runs whose first sigma is within this ratio of its own: 14.6 and 13.1, the starts of most
# schedules of 50 steps, are one; 10.8, that of 20 "leading" ones, is another (docs/evidence/faults/verdicts.md).
SIGMA_RATIO = 1.15
AREA_RATIO = 1.25  # its size class: latents whose area is within this ratio of its own ...
ASPECT_RATIO = 1.25  # ... and whose height over width is
EMPTY = "empty"  # stands for the empty negative prompt
UNKNOWN = "unknown"  # begins what stands for a negative prompt whose text is not known


@dataclass(frozen=True)
class Have:
    """What is known of a run that is to be judged; None where the host cannot tell.

    Attributes:
        model: fingerprint of the checkpoint, "" for unknown.
        sigma: noise level of the first scored step.
        steps_scored: number of model calls that the score is the mean of.
        reference: what the prompt is compared with.
        latent: height and width of the latents.
        negative: the negative prompt, from ``negative_of``.
        images: that a prompt's score is the mean of.
        scheduler: class of the sampler.
        num_steps: sampling steps of the run.
        guidance_scale: of the run.

    """

    model: str
    sigma: float | None
    steps_scored: int
    reference: str
    latent: tuple[int, int] | None = None
    negative: str | None = None
    images: int | None = None
    scheduler: str | None = None
    num_steps: int | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True)
class Conditions:
    """What a profile was measured under.

    Attributes:
        model: fingerprint of the checkpoint; "" where its weights could not be read.
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
        negative: the negative prompt, from ``negative_of``.
        images: that a score is the mean of.

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
    negative: str = EMPTY
    images: int = 1

    @property
    def negative_counts(self) -> bool:
        """Whether the negative prompt changes a score: where it is compared with, and where it has guided steps."""
        return self.reference == "negative" or self.steps_scored > 1

    @property
    def stem(self) -> str:
        """The name of a profile's file: what tells it from the other profiles of its checkpoint."""
        parts = [self.model or UNKNOWN, f"{self.latent[0]}x{self.latent[1]}", self.reference]
        if self.negative_counts and self.negative != EMPTY:
            parts.append(self.negative)
        if self.images > 1:
            parts.append(f"n{self.images}")
        parts.append(f"s{self.steps_scored}")
        if self.steps_scored > 1:
            word = "".join(c for c in self.scheduler if c.isalnum())
            parts.append(f"{word}-{self.num_steps}-g{self.guidance_scale:g}")
        return "-".join((*parts, f"{self.sigma:.3g}"))

    def wrong(self) -> str | None:
        """Return what no calibration writes, or None."""
        texts = (self.model, self.family, self.scheduler, self.reference, self.dtype, self.negative)
        if not all(isinstance(text, str) for text in texts):
            return "a value is of another kind than profiles hold"
        counts = (self.steps_scored, self.images, *self.latent)
        if not all(isinstance(number, int) for number in counts):
            return "steps_scored, images and latent must be whole numbers"
        numbers = (self.sigma, *counts)
        if len(self.latent) != 2 or not all(math.isfinite(number) and number > 0 for number in numbers):
            return "sigma, steps_scored, images and latent must be positive"
        return None

    def differences(self, have: Have) -> list[str]:
        """Return in what a run differs, the gravest first; empty where the profile holds for it."""
        found = []
        if have.model and self.model and self.model != have.model:
            found.append(f"the profile is for model {self.model}, this is {have.model}; run memguard calibrate")
        if self.reference != have.reference:
            found.append(
                f"the profile compares with the {self.reference} prompt, this run with the {have.reference} one"
            )
        if self.negative_counts and have.negative is not None and not self.negative.startswith(UNKNOWN):
            found += [] if self.negative == have.negative else [self._other_negative(have.negative)]
        if self.steps_scored != have.steps_scored:
            found.append(f"the profile scores {self.steps_scored} step(s), this run {have.steps_scored}")
        elif self.steps_scored > 1:
            found += self._other_steps(have)
        if have.sigma is not None and _beyond(have.sigma, self.sigma, SIGMA_RATIO):
            found.append(f"the profile is for sigma {self.sigma:.3g}, this run starts at {have.sigma:.3g}")
        if have.latent is not None and not self._size_fits(have.latent):
            mine, its = (f"{width} x {height}" for height, width in (self.latent, have.latent))
            found.append(f"the profile is for {mine} latents, this run has {its}; calibrate at this size")
        if have.images is not None and have.images < self.images:
            found.append(f"the profile is of means over {self.images} images, this run has {have.images}")
        return found

    def doubts(self, have: Have) -> list[str]:
        """Return what is not known of a run that the profile holds for as far as one can tell."""
        found = []
        if not have.model or not self.model:
            found.append("whether the profile is this model's is not known")
        if self.negative_counts and (have.negative is None or self.negative.startswith(UNKNOWN)):
            whose = "this run's" if have.negative is None else "the profile's"
            found.append(f"{whose} negative prompt is not known, so the profile may be of another one")
        return found

    def distance(self, have: Have) -> tuple[float, ...]:
        """Return how far a profile is that holds: the nearest negative prompt, then number of images, then size."""
        other = self.negative != (EMPTY if have.negative is None else have.negative)
        size = 0.0 if have.latent is None else abs(math.log(math.prod(self.latent) / math.prod(have.latent)))
        images = 0.0 if have.images is None else abs(math.log(have.images / self.images))
        return float(other), images, size

    def _size_fits(self, latent: tuple[int, int]) -> bool:
        area = _beyond(math.prod(latent), math.prod(self.latent), AREA_RATIO)
        return not area and not _beyond(latent[0] / latent[1], self.latent[0] / self.latent[1], ASPECT_RATIO)

    def _other_negative(self, negative: str) -> str:
        if self.negative == EMPTY:
            its = "the profile is for the empty negative prompt, this run has another one"
        elif negative == EMPTY:
            its = "the profile is for another negative prompt than this run's, which is empty"
        else:
            its = "the profile is for another negative prompt than this run's"
        remedy = "calibrate with it, or compare with the empty prompt (reference empty)"
        return f"{its}; {'calibrate' if negative == EMPTY else remedy}"

    def _other_steps(self, have: Have) -> list[str]:
        """Return in what a run of several scored steps differs: their trajectory is the sampler's."""
        found = []
        for what, mine, its in (
            ("sampler", self.scheduler, have.scheduler),
            ("number of steps", self.num_steps, have.num_steps),
            ("guidance scale", self.guidance_scale, have.guidance_scale),
        ):
            if its is not None and mine != its:
                found.append(f"the profile is for {what} {mine}, this run has {its}")
        return found


def negative_of(text: str | None) -> str | None:
    """Return what stands for a negative prompt in profiles: "empty", or eight hex digits; None for an unknown one."""
    if text is None:
        return None
    return hashlib.sha256(text.strip().encode("utf-8", "replace")).hexdigest()[:8] if text.strip() else EMPTY


def _beyond(one: float, other: float, ratio: float) -> bool:
    """Whether two positive numbers are further apart than a ratio."""
    return abs(math.log(one / other)) > math.log(ratio) + 1e-9
