"""Ranks of scanned prompts among ordinary ones, and what follows from all of them together, in words."""

from __future__ import annotations

import argparse
from collections import Counter
from functools import cached_property
from typing import Any

from ..calibration.conditions import Have, negative_of
from ..calibration.discovery import adjusted, calibration_needed, ordinary_share, ties_needed
from ..calibration.profile import Distribution, Profile, ProfileError
from ..calibration.tail import Tail, fit_tail
from ..lists import BadInput
from ..lists.merging import Row
from . import common, promoting

SLACK = 1e-9  # 3 x 0.1 is a little more than 0.3 in floating point
NOISE = (
    "all prompts were scored on the same noise, which raises or lowers their scores together, so that with some seeds"
    " nearly all ordinary prompts are found"
)
STAND = "prompts that a pre-scan did not promote all stand at p = 1"


class Ranking:
    """P-values of rows, and the q-values that they make together.

    Attributes:
        counts: p-value -> number of prompts, to be filled.
        q_values: p-value -> the smallest false-discovery rate at which it is found; after ``conclude``.
        looks: whether promoted -> number of prompts that a pre-scan has looked at, to be filled; empty without one.

    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.counts: Counter[float] = Counter()
        self.looks: Counter[bool] = Counter()
        self.q_values: dict[float, float] = {}
        self.ordinary = 1.0
        self.own_noise = True
        self.count: int | None = None  # ordinary prompts
        self.among: Distribution | None = None  # of the profile that was asked for
        self.tail: Tail | None = None
        if args.tail and args.profile is None:
            raise BadInput("--tail needs --profile, the scores that it is fitted to")
        _ = self.profile  # what is wrong with it costs no reading of rows

    @cached_property
    def profile(self) -> Profile | None:
        """The profile that was asked for."""
        try:
            return None if self.args.profile is None else Profile.read(self.args.profile)
        except ProfileError as error:
            raise BadInput(str(error)) from None

    @property
    def tests(self) -> int:
        """Prompts with a p-value."""
        return sum(self.counts.values())

    @property
    def found(self) -> int:
        """Prompts that are found."""
        return sum(count for p, count in self.counts.items() if self.is_found(p))

    def is_found(self, p: float | None) -> bool:
        """Whether a prompt of this p-value is found."""
        return p is not None and self.q_values[p] <= self.args.fdr * (1 + SLACK)

    def p_value(self, row: Row) -> float | None:
        """Return the p-value of a row, None of one without a score; 1 of one that a pre-scan did not promote.

        Raises:
            BadInput: if the row was not ranked when it was scanned and no profile is given, or one of something else.

        """
        if row.promoted is False:
            return 1.0
        if row.rms is None:
            return None
        if self.profile is not None:
            if self.among is None:
                self.among = self._chosen(row)
                self.count = self.among.count
            tail = None if self.tail is None else self.tail.p_value(row.rms)
            return self.among.p_value(row.rms) if tail is None else tail
        if row.count is None or row.below is None:
            raise BadInput(
                f"row {row.index} was not ranked ({row.source}); give --profile FILE, made by memguard calibrate"
            )
        if self.count not in (None, row.count):
            raise BadInput(f"row {row.index} was ranked by another profile than rows before; give --profile FILE")
        self.count = row.count
        return (1 + row.count - row.below) / (row.count + 1)

    def _chosen(self, row: Row) -> Distribution:
        """Return the scores of the profile's ordinary prompts, if it holds for the scan as far as a row tells."""
        assert self.profile is not None
        if row.detector not in self.profile.distributions:
            has = ", ".join(self.profile.distributions)
            raise BadInput(f"{self.args.profile}: has no {row.detector}; it has {has}")
        kept = row.settings
        if kept.get("prescan") and kept["prescan"] == common.digest_file(self.args.profile):
            raise BadInput(f"{self.args.profile}: {promoting.OTHER}; give one of the scan's size")
        have = Have(
            model=row.model,
            sigma=row.sigma,
            steps_scored=kept.get("steps", self.profile.conditions.steps_scored),
            reference=row.reference,
            negative=negative_of(kept.get("negative prompt") or ""),
            images=kept.get("num images"),
            scheduler=row.sampler,
            num_steps=kept.get("num inference steps"),
            guidance_scale=kept.get("guidance scale"),
        )
        wrong = self.profile.mismatch(have)
        if wrong is not None:
            raise BadInput(f"{self.args.profile}: {wrong}")
        among = self.profile.distributions[row.detector]
        try:
            self.tail = None if self.args.tail is None else fit_tail(among)
        except ProfileError as error:
            raise BadInput(f"{self.args.profile}: {error}") from None
        return among

    def conclude(self, own_noise: bool) -> None:
        """Compute the q-values.

        Args:
            own_noise: whether each prompt was scored on noise of its own, as a profile's are. Where all have the same,
                their scores move together, and a share that is estimated from them would be the noise's.

        Raises:
            BadInput: for a share of ordinary prompts below 1 after a pre-scan.

        """
        given = self.args.ordinary_share
        self.own_noise = own_noise
        if self.looks and given not in (None, 1.0):
            raise BadInput(f"--ordinary-share: {given}, but {STAND}, whatever they are; it is 1 after a pre-scan")
        if given is not None:
            self.ordinary = given
        elif own_noise and not self.looks:
            self.ordinary = ordinary_share(self.counts)
        self.q_values = adjusted(self.counts, self.ordinary)

    def values(self) -> dict[str, Any]:
        """Return what was found as plain values."""
        count = self.count or 0
        values = {"tests": self.tests, "found": self.found, "false_discovery_rate": self.args.fdr}
        values |= {"ordinary_share": self.ordinary, "ordinary_prompts": count, "above_all": self._above_all()}
        values |= {"needed_above_all": ties_needed(self.tests, count, self.args.fdr, self.ordinary)}
        if self.looks:
            values["promoted"] = self.looks[True]
        if self.tail is not None:
            values["tail"] = {"shape": self.tail.shape, "scale": self.tail.scale, "exceedances": self.tail.count}
        return values

    def _above_all(self) -> int:
        """Return how many prompts score above all ordinary ones."""
        if not self.count:
            return 0
        least = 1 / (self.count + 1)
        return sum(count for p, count in self.counts.items() if p <= least * (1 + SLACK))

    def sentences(self) -> list[str]:
        """Return what was found, what that rests on, and what the number of ordinary prompts supports."""
        rate, count, above = self.args.fdr, self.count or 0, self._above_all()
        estimated = self.own_noise and self.args.ordinary_share is None and not self.looks
        share = "estimated" if estimated else "assumed"
        said = [
            f"found: {self.found} of {self.tests} prompts at a false-discovery rate of {_share(rate)}"
            f" (Benjamini-Hochberg, {share} share of ordinary prompts {self.ordinary:.3g})"
        ]
        if self.looks:
            said.append(
                f"a pre-scan promoted {self.looks[True]} of {self.looks.total()} prompts; the others count as tests"
                " with p = 1, and copies among them are not found"
            )
        if not count:
            return [*said, "no prompt that was promoted has a score, so nothing can be found"]
        if self.tail is not None:
            said.append(
                f"ASSUMED: above the highest {self.tail.count} of {count} ordinary prompts scores follow a generalised"
                f" Pareto distribution (shape {self.tail.shape:.2f}); the rate is only as good as that"
            )
        else:
            needed = ties_needed(self.tests, count, rate, self.ordinary)
            said.append(
                f"{count} ordinary prompts support p-values down to 1/{count + 1}: at this rate and of so many prompts,"
                f" {needed} or more must score above all of them for any to be found; {above} do"
            )
            if 0 < above < needed:
                enough = calibration_needed(self.tests, above, rate, self.ordinary)
                said.append(
                    f"to find {above} takes {enough} ordinary prompts, if none of those scores as high (memguard"
                    " calibrate FILE), or a shorter list"
                )
        if not self.own_noise:
            said.append(NOISE)
        return said


def _share(rate: float) -> str:
    return f"{100 * rate:.3g} %"
