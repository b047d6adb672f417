"""The choice of a pre-scan: who goes on to the scan after a first look at a smaller size.

Whoever ranks high enough among ordinary prompts at that size is promoted. The others get no score and, among the
discoveries of a list, the p-value 1: that is never below the one that the scan would have given them, so leaving them
out makes no discovery of an ordinary prompt, it only loses copies (tests/core/test_discovery.py has the simulation).
Leaving them out of the count as well would break the rate: those that are promoted score high at full size, too.

May import: memguard.records, memguard.calibration.profile, memguard.calibration.conditions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..records import Finding, Prescan
from .conditions import Have
from .profile import Profile

PROMOTE = 0.1  # on the test bed it keeps 97 % of the copies that the scan finds (docs/evidence/audits/scale.md)


def unsuited(profile: Profile, detectors: Sequence[str], have: Have, latent: tuple[int, int] | None) -> str | None:
    """Return why a profile cannot be a pre-scan's, or None if it can.

    Args:
        profile: of ordinary prompts at the smaller size.
        detectors: of the scan.
        have: what is known of the scan; its size and number of images are its own affair.
        latent: height and width of the scan's latents; None where they are not known yet.

    """
    for name in detectors:
        if name not in profile.distributions:
            has = ", ".join(profile.distributions) or "none"
            return f"the profile has no scores of ordinary prompts by {name} to rank among; it has {has}"
    mine = profile.conditions.latent
    if latent is not None and math.prod(mine) >= math.prod(latent):
        sizes = f"{mine[1]} x {mine[0]} latents, the scan's are {latent[1]} x {latent[0]}"
        return f"the profile is of {sizes}; a pre-scan takes one of a smaller size"
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
