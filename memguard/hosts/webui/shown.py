"""What a person sees of a session: a sentence for the toast, HTML for below the gallery. All text is escaped.

Part of the WebUI hosts; may import: memguard's core.
"""

from __future__ import annotations

from html import escape

from ...records import Report
from ...wording import message
from .session import Session

COLOURS = {"memorized": "#c2372e", "suspicious": "#b26a00", "ordinary": "#2e7d4f", "unknown": "inherit"}
MARKS = {"memorized": "●", "suspicious": "◐", "ordinary": "○", "unknown": "–"}


def warning(session: Session) -> str:
    """Return the toast's text: policy "warn" and "stop" warn of a run that looks memorized; "" for no toast."""
    if session.stopped:
        return session.stopped
    report = session.gravest
    flagged = report is not None and report.flagged and session.guard.policy != "observe"
    return message(report) if flagged and report is not None else ""


def html(session: Session) -> str:
    """Return the panel: a line for each pass, its scores by image, and its notes."""
    blocks = "".join(_block(report) for report in session.reports)
    stopped = f'<p style="color:{COLOURS["memorized"]}">{escape(session.stopped)}</p>' if session.stopped else ""
    return f'<div class="memguard-panel">{stopped}{blocks}</div>'


def _block(report: Report) -> str:
    verdict = report.verdict if report.verdict_after == "unknown" else report.verdict_after
    mark = f'<b style="color:{COLOURS[verdict]}" aria-hidden="true">{MARKS[verdict]}</b>'
    lines = [f"<p>{mark} {escape(message(report).removeprefix('MemGuard: '))}</p>"]
    scored = next((finding for finding in report.findings if len(finding.scores) > 1), None)
    if scored is not None:
        lines.append(f"<p>by image: {', '.join(f'{score:.3g}' for score in scored.scores)}</p>")
    lines += [f"<p><small>{escape(note)}</small></p>" for note in (*report.notes, report.error or "") if note]
    return "".join(lines)
