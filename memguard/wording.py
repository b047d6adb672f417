"""The sentence about a report that every screen shows, and how its numbers are written.

May import: memguard.records.
"""

from __future__ import annotations

import math

from .records import VERDICTS, Finding, Report


def message(report: Report) -> str:
    """Return the one sentence that every screen shows for a report."""
    if report.error and not report.findings:
        return f"MemGuard: no score, because of an error: {report.error}"
    if not report.findings:
        return "MemGuard: no score"
    finding = max(report.findings, key=_gravity)
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
    return text


def percent(value: float) -> str:
    """Return a percentile as text that never rounds up to 100 %."""
    return "at least 99.99 %" if value > 99.99 else f"{math.floor(value * 100) / 100:.4g} %"


def _gravity(finding: Finding) -> tuple[int, bool]:
    """Order findings by verdict; of those without one, a score says more than a reason."""
    return (VERDICTS.index(finding.verdict) if finding.verdict in VERDICTS else -1, finding.score is not None)
