"""The sentence about a report that every screen shows, how its numbers are written, and the signs of its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .distance import gravest
from .findings import Finding, Judged, Verdict
from .troubles import UNFORESEEN


class Sign(NamedTuple):
    """How a verdict is shown; tools/report_format.py writes the same for ComfyUI's page.

    Attributes:
        mark: one character, so that the verdict never hangs on a colour alone.
        words: what is said of a run.
        letters: colours of text on a light and on a dark page, with a contrast of 4.5 on either.
        badge: ground and text of a bar that says nothing else, with the same contrast.

    """

    mark: str
    words: str
    letters: tuple[str, str]
    badge: tuple[str, str]


SIGNS: dict[Verdict, Sign] = {
    "ordinary": Sign("✓", "looks ordinary", ("#1f6b40", "#81c784"), ("#1d6b35", "#ffffff")),
    "suspicious": Sign("▲", "may be memorized", ("#8a5100", "#ffb74d"), ("#ffb627", "#1c1400")),
    "memorized": Sign("■", "looks memorized", ("#b3261e", "#ff8a80"), ("#a3161c", "#ffffff")),
    "unknown": Sign("?", "no verdict", ("inherit", "inherit"), ("#4a4a4a", "#ffffff")),
}


def message(report: Judged) -> str:
    """Return the one sentence that every screen shows for a report."""
    if report.error and not report.findings:
        return f"MemGuard: no score, because of {UNFORESEEN}"
    if not report.findings:
        return "MemGuard: no score"
    finding = report.findings[told(report) or 0]
    if finding.score is None:
        return f"MemGuard: no score, because {finding.status}"
    text = f"MemGuard: {SIGNS[finding.verdict].words} (score {finding.score:.3g}, {place(finding)}"
    text += f"; {finding.caveat})" if finding.caveat else ")"
    if finding.carried:
        text += "; that is the verdict of an earlier pass, this one has none of its own"
    return text + mitigated(report)


def told(report: Judged) -> int | None:
    """Return which of ``findings`` the sentence is of, counted from 0; None where there is none."""
    finding = gravest(report.findings) or max(report.findings, key=lambda found: found.score is not None, default=None)
    return next((index for index, found in enumerate(report.findings) if found is finding), None)


def mitigated(report: Judged) -> str:
    """Return what became of a run that was to be mitigated, behind the sentence; "" where nothing was tried."""
    if not report.attempts:
        return ""
    kept = [attempt for attempt in report.attempts if attempt.kept]
    if not kept:
        scored = [mean(attempt.scores) for attempt in report.attempts]
        best = min((score for score in scored if score is not None), default=None)
        reached = "" if best is None else f" (the lowest score reached was {best:.3g})"
        return f"; could not be mitigated{reached}, the picture is the unmitigated one"
    done = f"; mitigated by {', then '.join(attempt.mitigation for attempt in kept)}"
    score = mean(kept[-1].scores)
    if score is None:
        return f"{done}, not scored again"
    verdict = kept[-1].verdict
    return f"{done}: now {'without a verdict' if verdict == 'unknown' else SIGNS[verdict].words} (score {score:.3g})"


def place(finding: Finding) -> str:
    """Return where a score stands among ordinary prompts, by rank; why that is not known where it is not."""
    if finding.below is not None and finding.count is not None:
        if finding.below == finding.count:
            return f"higher than all {finding.count} ordinary prompts"
        return f"higher than {finding.below} of {finding.count} ordinary prompts"
    if finding.percentile is not None:  # a report of an earlier version
        return f"higher than {percent(finding.percentile)} of ordinary prompts"
    return finding.threshold_source


def odds(finding: Finding) -> str:
    """Return how often an ordinary prompt gets such a verdict by mistake; "" where no rate is known."""
    if finding.rate is None or finding.rate_bound is None:
        return ""
    rate, bound = f"{100 * finding.rate:.2g} % of ordinary prompts", f"at most {100 * finding.rate_bound:.2g} %"
    if finding.verdict == "ordinary":  # this one is not flagged
        return f"{rate} are flagged by mistake, {bound} (95 % confidence)"
    what = SIGNS["memorized"].words if finding.verdict == "memorized" else "flagged"
    return f"{what} by mistake: {rate}, {bound} (95 % confidence)"


def mean(scores: Sequence[float]) -> float | None:
    """Return the mean of the scores that there are."""
    known = [score for score in scores if not math.isnan(score)]
    return math.fsum(known) / len(known) if known else None


def percent(value: float) -> str:
    """Return a percentile as text that never rounds up to 100 %."""
    return "at least 99.99 %" if value > 99.99 else f"{math.floor(value * 100) / 100:.4g} %"
