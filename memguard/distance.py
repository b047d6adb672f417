"""How far a run is from ordinary prompts, detector by detector, and whether an attempt brought it nearer.

Detectors have units of their own (an L2 norm, nats), so scores of two of them are never compared. The distance is
(score - median) / (threshold - median) of ordinary prompts, linear in the score: 0 at the median prompt, 1 where a
verdict becomes "suspicious". Ranks and p-values would not do: every memorized prompt has the highest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from .findings import FLAGGED, VERDICTS, Finding

# A score that just slips under the threshold belongs to a prompt that still copies (docs/evidence/mitigation.md): a run
# is where ordinary prompts are when it is this near to the median one. A rise of less is none.
CLOSE = 0.1
HELPED = 0.75  # an attempt that leaves more than this share of the distance is taken back: no change without effect

Standing = Mapping[str, Finding]  # of each detector that has a verdict


def standing(findings: Iterable[Finding]) -> dict[str, Finding]:
    """Return the findings that have a verdict, by detector."""
    return {finding.detector: finding for finding in findings if finding.verdict in VERDICTS}


def distance(finding: Finding) -> float:
    """Return how far a finding with a verdict is from ordinary prompts."""
    score, threshold, typical = finding.mean_rms, finding.threshold, finding.typical
    if score is None or threshold is None:
        return math.inf
    if typical is None or not threshold > typical:
        return score / threshold if threshold > 0 else math.inf
    return (score - typical) / (threshold - typical)


def gravest(findings: Iterable[Finding]) -> Finding | None:
    """Return the finding with the gravest verdict; of several, the one furthest from ordinary prompts."""
    known = standing(findings).values()
    return max(known, key=lambda found: (VERDICTS.index(found.verdict), distance(found)), default=None)


def helped(before: Standing, after: Standing, flagged: Collection[str]) -> bool | None:
    """Return whether a run came nearer to ordinary prompts; None where no detector that flagged it was asked again.

    It did not where any detector flags it and shows a rise. It did where the flagged range was left.

    Args:
        before: of the best attempt so far.
        after: of the attempt.
        flagged: the detectors that flagged the run at first.

    """
    both = before.keys() & after.keys()
    if any(_is_flagged(after[name]) and distance(after[name]) > distance(before[name]) + CLOSE for name in both):
        return False
    asked = [name for name in flagged if name in both]
    if not asked:
        return None
    if any(_is_flagged(before[name]) for name in asked) and not any(map(_is_flagged, after.values())):
        return True
    return max(distance(after[name]) for name in asked) <= HELPED * max(distance(before[name]) for name in asked)


def ordinary(after: Standing, flagged: Collection[str]) -> bool:
    """Whether a run is where ordinary prompts are, by every detector that flagged it, and no other flags it."""
    if any(map(_is_flagged, after.values())):
        return False
    return all(name in after and distance(after[name]) <= CLOSE for name in flagged)


def _is_flagged(finding: Finding) -> bool:
    return finding.verdict in FLAGGED
