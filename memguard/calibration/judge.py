"""From a score to a verdict: by profile, else by the literature for SD1 at 512 px, else "unknown".

May import: memguard.records, memguard.detectors, memguard.calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..detectors.text_noise_norm import NAME as NORM
from ..records import Finding, Report, StepEvidence, Verdict
from . import store
from .profile import Profile, Sensitivity

# Ordinary prompts reach an L2 of 1-2 and memorized ones more than 3-5 on SD1.4 at 512 px and t = 981, over five
# independent code bases; as RMS over 4 x 64 x 64 elements, 3 is 0.0234 and 5 is 0.0391.
LITERATURE_ORDINARY, LITERATURE_SUSPICIOUS, LITERATURE_MEMORIZED = 1.5 / 128, 3 / 128, 5 / 128
LITERATURE_LATENT = 64 * 64
# Below this share of the largest sigma a run starts from a picture, and its score means something else.
FULL_NOISE = 0.7


def judge(
    finding: Finding,
    report: Report,
    evidence: Sequence[StepEvidence],
    profile: Profile | None,
    sensitivity: Sensitivity,
) -> Finding:
    """Return the finding with z-score, percentile, threshold and verdict.

    Args:
        finding: what a detector measured.
        report: facts of the run (model fingerprint, family).
        evidence: the scored steps.
        profile: the profile that was asked for; None looks one up by fingerprint.
        sensitivity: where "suspicious" begins.

    """
    rms = finding.mean_rms
    if rms is None or not evidence:
        return replace(finding, threshold_source="")
    first = evidence[0]
    have = {
        "model": report.model,
        "sigma": first.sigma,
        "steps_scored": len(evidence),
        "reference": finding.reference,
    }
    high = first.sigma >= FULL_NOISE * first.sigma_max
    if not (high if first.full_noise is None else first.full_noise):
        start = f"uncalibrated: the run starts at sigma {first.sigma:.3g} of {first.sigma_max:.3g}, not from pure noise"
        return replace(finding, threshold_source=start)
    latent = (first.noise_cond.shape[-2], first.noise_cond.shape[-1])
    chosen = profile or store.find(have, latent, finding.detector)
    if chosen is not None:
        wrong = chosen.mismatch(have)
        if wrong is None and finding.detector not in chosen.distributions:
            wrong = f"the profile has no {finding.detector}"
        if wrong is not None:
            return replace(finding, threshold_source=f"uncalibrated: {wrong}")
        return _by_profile(finding, rms, chosen, sensitivity)
    alike = report.family == "sd15" and latent[0] * latent[1] == LITERATURE_LATENT and high
    if alike and finding.detector == NORM:
        return _by_literature(finding, rms)
    near = [profile.mismatch(have) for profile in store.of_model(report.model)]
    why = next((reason for reason in near if reason), "no profile for this model; run memguard calibrate")
    return replace(finding, threshold_source=f"uncalibrated: {why}")


def ordinary(model: str, sigma: float, latent: tuple[int, int]) -> tuple[float | None, float | None]:
    """Return RMS of text_noise_norm from which a run is suspicious, and that of the median ordinary prompt.

    For the first step of a run that no guard watches; (None, None) without a profile of the model.

    Args:
        model: fingerprint of the checkpoint.
        sigma: noise level of the step.
        latent: height and width.

    """
    for reference in ("negative", "empty"):
        have = {"model": model, "sigma": sigma, "steps_scored": 1, "reference": reference}
        profile = store.find(have, latent, NORM)
        if profile is not None:
            found = profile.distributions[NORM]
            return found.threshold(Sensitivity().suspicious), found.threshold(0.0)
    return None, None


def _by_profile(finding: Finding, rms: float, profile: Profile, sensitivity: Sensitivity) -> Finding:
    distribution = profile.distributions[finding.detector]
    z = distribution.zscore(rms)
    grave: Verdict = "memorized" if z >= sensitivity.memorized else "suspicious"
    source = f"profile of {distribution.count} ordinary prompts"
    return replace(
        finding,
        zscore=z,
        percentile=distribution.percentile(rms),
        threshold=distribution.threshold(sensitivity.suspicious),
        typical=distribution.threshold(0.0),
        threshold_source=source,
        verdict=grave if z >= sensitivity.suspicious else "ordinary",
    )


def _by_literature(finding: Finding, rms: float) -> Finding:
    grave: Verdict = "memorized" if rms >= LITERATURE_MEMORIZED else "suspicious"
    return replace(
        finding,
        threshold=LITERATURE_SUSPICIOUS,
        typical=LITERATURE_ORDINARY,
        threshold_source="uncalibrated: literature values for SD1 at 512 px",
        verdict=grave if rms >= LITERATURE_SUSPICIOUS else "ordinary",
    )
