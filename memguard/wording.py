"""The sentence about a report that every screen shows, and how its numbers are written.

May import: memguard.records, memguard.distance.
"""

from __future__ import annotations

import math

from .distance import gravest
from .records import Attempt, Report

AFTER = {"ordinary": "looks ordinary", "suspicious": "may be memorized", "memorized": "looks memorized"}


def message(report: Report) -> str:
    """Return the one sentence that every screen shows for a report."""
    if report.error and not report.findings:
        return f"MemGuard: no score, because of an error: {report.error}"
    if not report.findings:
        return "MemGuard: no score"
    finding = gravest(report.findings) or max(report.findings, key=lambda found: found.score is not None)
    if finding.score is None:
        return f"MemGuard: no score, because {finding.status}"
    words = {
        "memorized": "looks memorized",
        "suspicious": "may be memorized",
        "ordinary": "looks ordinary",
        "unknown": "no verdict",
    }
    text = f"MemGuard: {words[finding.verdict]} (score {finding.score:.3g}"
    if finding.percentile is not None:
        text += f", higher than {percent(finding.percentile)} of ordinary prompts)"
    else:
        text += f", {finding.threshold_source})"
    if finding.carried:
        text += "; that is the verdict of an earlier pass, this one has none of its own"
    return text + mitigated(report)


def mitigated(report: Report) -> str:
    """Return what became of a run that was to be mitigated, behind the sentence; "" where nothing was tried."""
    if not report.attempts:
        return ""
    kept = [attempt for attempt in report.attempts if attempt.kept]
    if not kept:
        scored = [attempt for attempt in report.attempts if attempt.scores]
        best = min(scored, key=_mean, default=None)
        reached = "" if best is None else f" (the lowest score reached was {_mean(best):.3g})"
        return f"; could not be mitigated{reached}, the picture is the unmitigated one"
    done = f"; mitigated by {', then '.join(attempt.mitigation for attempt in kept)}"
    if not kept[-1].scores:
        return f"{done}, not scored again"
    verdict = AFTER.get(kept[-1].verdict, "without a verdict")
    return f"{done}: now {verdict} (score {_mean(kept[-1]):.3g})"


def _mean(attempt: Attempt) -> float:
    return math.fsum(attempt.scores) / len(attempt.scores)


def percent(value: float) -> str:
    """Return a percentile as text that never rounds up to 100 %."""
    return "at least 99.99 %" if value > 99.99 else f"{math.floor(value * 100) / 100:.4g} %"
