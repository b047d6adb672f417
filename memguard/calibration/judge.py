"""From a score to a verdict: by its rank among a profile's ordinary prompts, else by the literature (SD1, 512 px)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from ..detectors.text_noise_norm import NAME as NORM
from ..records import VERDICTS, Finding, Report, StepEvidence, Verdict
from . import store
from .conditions import EMPTY, Have, negative_of
from .profile import Distribution, Profile, Sensitivity
from .rates import Cut, at, cut, needed

# Ordinary prompts reach an L2 of 1-2 and memorized ones more than 3-5 on SD1.4 at 512 px and t = 981, over five
# independent code bases, with an empty negative prompt and one scored step; as RMS over 4 x 64 x 64 elements, 3 is
# 0.0234 and 5 is 0.0391. No rate is known for them; 3 is taken for the 99th percentile of a log-normal distribution.
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
    """Return the finding with rank, p-value, threshold and verdict.

    Args:
        finding: what a detector measured.
        report: facts of the run (model fingerprint, family, negative prompt, sampler, steps, guidance).
        evidence: the scored steps.
        profile: the profile that was asked for; None looks one up by fingerprint.
        sensitivity: where "suspicious" begins.

    """
    rms = finding.mean_rms
    if rms is None or not evidence:
        return replace(finding, threshold_source="")
    first = evidence[0]
    high = first.sigma >= FULL_NOISE * first.sigma_max
    if not (high if first.full_noise is None else first.full_noise):
        start = f"uncalibrated: the run starts at sigma {first.sigma:.3g} of {first.sigma_max:.3g}, not from pure noise"
        return replace(finding, threshold_source=start)
    have = _have(finding, report, evidence)
    chosen = profile or store.find(have, finding.detector)
    if chosen is not None:
        wrong = chosen.mismatch(have)
        if wrong is None and finding.detector not in chosen.distributions:
            wrong = f"the profile has no {finding.detector}"
        if wrong is not None:
            return replace(finding, threshold_source=f"uncalibrated: {wrong}")
        doubts = chosen.conditions.doubts(have)
        return _by_profile(finding, rms, chosen.distributions[finding.detector], sensitivity, doubts)
    why = store.why_not(have, finding.detector)
    if finding.detector == NORM and report.family == "sd15" and have.latent == (64, 64) and high:
        if have.steps_scored == 1 and (have.reference == "empty" or have.negative == EMPTY):
            return _by_literature(finding, rms, sensitivity)
        why += "; the literature's values are for the empty negative prompt and one scored step"
    return replace(finding, threshold_source=f"uncalibrated: {why}")


def together(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings of one run; flagged ones say how often a run of so many looks is flagged by mistake."""
    judged = [(finding.flag_rate, len(set(_numbers(finding)))) for finding in findings if finding.flag_rate is not None]
    looks = sum(prompts for _, prompts in judged)
    if looks < 2:
        return tuple(findings)
    rate = min(1.0, sum(rate * prompts for rate, prompts in judged))
    said = f"one of {looks} looks at this run (detectors x prompts): up to {_share(rate)} of ordinary runs are flagged"
    return tuple(
        replace(finding, caveat=_joined(finding.caveat, said)) if finding.verdict in VERDICTS[1:] else finding
        for finding in findings
    )


def ordinary(model: str, sigma: float, latent: tuple[int, int]) -> tuple[float | None, float | None]:
    """Return RMS of text_noise_norm above which a run is suspicious, and that of the median ordinary prompt.

    For the first step of a run that no guard watches; (None, None) without a profile of the model.

    Args:
        model: fingerprint of the checkpoint.
        sigma: noise level of the step.
        latent: height and width.

    """
    for reference in ("negative", "empty"):
        profile = store.find(Have(model, sigma, 1, reference, latent), NORM)
        if profile is not None:
            found = profile.distributions[NORM]
            flagging = cut(Sensitivity().suspicious, found.count) or at(0, found.count)
            return found.limit(flagging.allowed), found.median
    return None, None


def _have(finding: Finding, report: Report, evidence: Sequence[StepEvidence]) -> Have:
    first = evidence[0]
    scored = [number for number, rms in zip(_numbers(finding), finding.rms, strict=True) if math.isfinite(rms)]
    return Have(
        model=report.model,
        sigma=first.sigma,
        steps_scored=len(evidence),
        reference=finding.reference,
        latent=first.size,
        negative=negative_of(report.negative_prompt),
        images=min(map(scored.count, scored)),
        scheduler=report.sampler,
        num_steps=report.steps,
        guidance_scale=report.cfg,
    )


def _numbers(finding: Finding) -> tuple[int, ...]:
    return finding.prompts or (0,) * len(finding.rms)


def _by_profile(
    finding: Finding, rms: float, among: Distribution, sensitivity: Sensitivity, doubts: Sequence[str]
) -> Finding:
    """Judge by rank; where the ordinary prompts are too few for the rate, above all of them is suspicious."""
    flagging, grave = cut(sensitivity.suspicious, among.count), cut(sensitivity.memorized, among.count)
    caveats = list(doubts)
    if flagging is None:
        flagging = at(0, among.count)
        caveats.append(
            f"{among.count} ordinary prompts cannot show a rate of {_share(sensitivity.suspicious)}, that takes "
            f"{needed(sensitivity.suspicious)}; what is above all of them is flagged, which is {_share(flagging.rate)}"
        )
    verdict: Verdict = "ordinary"
    said: Cut = flagging
    if rms > among.limit(flagging.allowed):
        verdict = "suspicious"
        if grave is not None and rms > among.limit(grave.allowed):
            verdict, said = "memorized", grave
    return replace(
        finding,
        zscore=among.zscore(rms),
        percentile=among.percentile(rms),
        p_value=among.p_value(rms),
        below=among.below(rms),
        count=among.count,
        rate=said.rate,
        rate_bound=said.bound,
        flag_rate=flagging.rate,
        threshold=among.limit(flagging.allowed),
        typical=among.median,
        threshold_source=f"profile of {among.count} ordinary prompts",
        verdict=verdict,
        caveat=_joined(finding.caveat, *caveats),
    )


def _by_literature(finding: Finding, rms: float, sensitivity: Sensitivity) -> Finding:
    """Judge by the literature's 3 and 5 at sensitivity 99, and by what a log-normal fit makes of them at another."""
    z = statistics.NormalDist().inv_cdf
    spread = math.log(LITERATURE_SUSPICIOUS / LITERATURE_ORDINARY) / z(0.99)
    threshold = LITERATURE_ORDINARY * math.exp(spread * z(sensitivity.percentile / 100))
    grave: Verdict = "memorized" if rms >= threshold * LITERATURE_MEMORIZED / LITERATURE_SUSPICIOUS else "suspicious"
    return replace(
        finding,
        threshold=threshold,
        typical=LITERATURE_ORDINARY,
        threshold_source="uncalibrated: literature values for SD1 at 512 px",
        verdict=grave if rms >= threshold else "ordinary",
    )


def _share(rate: float) -> str:
    return f"{100 * rate:.2g} %"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
