"""The choice of a pre-scan: who goes on to the scan after a first look at a smaller size.

Whoever ranks high enough among ordinary prompts at that size is promoted. The others get no score and, among the
discoveries of a list, the p-value 1: that is never below the one that the scan would have given them, so leaving them
out makes no discovery of an ordinary prompt, it only loses copies (tests/core/test_discovery.py has the simulation).
Leaving them out of the count as well would break the rate: those that are promoted score high at full size, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..records import Finding, Prescan
from .conditions import Have
from .profile import Profile

PROMOTE = 0.1  # on the test bed it keeps 97 % of the copies that the scan finds (docs/evidence/audits/scale.md)


@dataclass(frozen=True)
class Frame:
    """The size of a scan's pictures, in pixels.

    Attributes:
        height: of the pictures.
        width: of the pictures.
        pixels: of one latent, along a side.
        grain: sides are multiples of it.

    """

    height: int
    width: int
    pixels: int
    grain: int

    def half(self) -> tuple[int, int]:
        """Return half the height and width, rounded down to what sides are multiples of."""
        height, width = (max(side // (2 * self.grain) * self.grain, self.grain) for side in (self.height, self.width))
        return height, width

    def looks_like(self, height: int, width: int) -> bool:
        """Whether a picture is this one made smaller by one factor, each of its sides rounded to a multiple."""
        # factors from (side - grain / 2) / whole to (side + grain / 2) / whole give a side; here without divisions
        tall, wide = (
            (2 * height - self.grain, 2 * height + self.grain),
            (2 * width - self.grain, 2 * width + self.grain),
        )
        alike = tall[0] * self.width <= wide[1] * self.height and wide[0] * self.height <= tall[1] * self.width
        return alike and height * width < self.height * self.width


def unsuited(
    profile: Profile, detectors: Sequence[str], have: Have, rate: float, frame: Frame | None = None
) -> str | None:
    """Return why a profile cannot be a pre-scan's, or None if it can.

    Args:
        profile: of ordinary prompts at the smaller size.
        detectors: of the scan.
        have: what is known of the scan; its size and number of images are its own affair.
        rate: share of ordinary prompts, 0..1, that may be promoted.
        frame: of the scan; None where it is not known yet.

    """
    for name in detectors:
        if name not in profile.distributions:
            has = ", ".join(profile.distributions) or "none"
            return f"the profile has no scores of ordinary prompts by {name} to rank among; it has {has}"
        count = profile.distributions[name].count
        if rate < 1 / (count + 1):
            least = math.ceil(1e6 / (count + 1)) / 1e6
            return (
                f"promote is {rate:g}, but none can rank higher than 1 of {count + 1} among {count} ordinary prompts;"
                f" give at least {least:g}, or calibrate with more of them"
            )
    if frame is not None:
        height, width = (frame.pixels * side for side in profile.conditions.latent)
        if not frame.looks_like(height, width):
            sizes = f"{width} x {height} pixels, the scan of {frame.width} x {frame.height}"
            remedy = "memguard calibrate --height {} --width {}".format(*frame.half())
            return f"the profile is of {sizes}; a first look is a smaller picture of the same shape: {remedy}"
    return profile.mismatch(replace(have, latent=None, images=None))


def looked(findings: Sequence[Finding], rate: float, height: int, width: int) -> tuple[Prescan, ...]:
    """Return what a first look says of a prompt, one per detector.

    A prompt is promoted if its p-value is at most ``rate`` by one of them, and if one has none: what cannot be ranked
    is not known to be ordinary, and the scan will say what is wrong with it.

    Args:
        findings: of the first look.
        rate: share of ordinary prompts, 0..1, that may be promoted (by each detector).
        height: of the first look, pixels.
        width: pixels.

    """
    promoted = any(found.p_value is None or found.p_value <= rate for found in findings)
    return tuple(
        Prescan(promoted, height, width, found.score, found.mean_rms, found.p_value, found.below, found.count)
        for found in findings
    )


def left_out(finding: Finding, prescan: Prescan) -> Finding:
    """Return the finding of a prompt that is not promoted, from that of its first look.

    Its verdict is unknown: "ordinary" would be a statement about the size of the scan, where nobody has looked.
    """
    size = f"{prescan.height}x{prescan.width}"
    return Finding(
        finding.detector,
        unit=finding.unit,
        status=f"not promoted: above {prescan.below} of {prescan.count} ordinary prompts at {size}",
        reference=finding.reference,
        threshold_source="",
        prescan=prescan,
    )
