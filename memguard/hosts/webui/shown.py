"""What a person sees of a session: a sentence for the toast, HTML for below the gallery. All text is escaped.

Part of the WebUI hosts; may import: memguard's core.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from ...memory import PromptWarning
from ...overlay import NAMES, colours, ink
from ...records import Attribution, Report
from ...wording import message
from .session import Session

COLOURS = {"memorized": "#c2372e", "suspicious": "#b26a00", "ordinary": "#2e7d4f", "unknown": "inherit"}
MARKS = {"memorized": "●", "suspicious": "◐", "ordinary": "○", "unknown": "–"}
WIDE, HIGH = 240, 60  # of the curve, in its own units


def warning(session: Session) -> str:
    """Return the toast's text: policy "warn" and "stop" warn of a run that looks memorized; "" for no toast."""
    if session.stopped:
        return session.stopped
    report = session.gravest
    flagged = report is not None and report.flagged and session.guard.policy != "observe"
    return message(report) if flagged and report is not None else ""


def html(session: Session) -> str:
    """Return the panel: a block for each pass, with its scores, words, curve, maps and notes."""
    pairs = zip(session.reports, session.pictures, strict=True)
    blocks = "".join(_block(report, pictures) for report, pictures in pairs)
    stopped = f'<p style="color:{COLOURS["memorized"]}">{escape(session.stopped)}</p>' if session.stopped else ""
    return f'<div class="memguard-panel">{stopped}{blocks}</div>'


def known(warning: PromptWarning | None) -> str:
    """Return the line about a prompt that was typed; "" where nothing is known of it."""
    if warning is None:
        return ""
    what = "this prompt" if warning.kind == "prompt" else f"a prompt with {', '.join(warning.words)}"
    verdict = {"memorized": "looked memorized", "suspicious": "may be memorized"}.get(warning.verdict, warning.verdict)
    score = "" if warning.score is None else f" (score {warning.score:.3g})"
    colour = COLOURS.get(warning.verdict, "inherit")
    return f'<p class="memguard-known" style="color:{colour}">MemGuard: {escape(f"{what} {verdict}{score} before")}</p>'


def _block(report: Report, pictures: Sequence[tuple[str, str]]) -> str:
    verdict = report.verdict if report.verdict_after == "unknown" else report.verdict_after
    mark = f'<b style="color:{COLOURS[verdict]}" aria-hidden="true">{MARKS[verdict]}</b>'
    lines = [f"<p>{mark} {escape(message(report).removeprefix('MemGuard: '))}</p>"]
    scored = next((finding for finding in report.findings if len(finding.scores) > 1), None)
    if scored is not None:
        lines.append(f"<p>by image: {', '.join(f'{score:.3g}' for score in scored.scores)}</p>")
    if report.attribution is not None:
        lines.append(_words(report.attribution))
    if len(report.curve) > 1:
        lines.append(_curve(report.curve))
    if pictures:
        lines.append(f'<div style="display:flex;flex-wrap:wrap;gap:.5em">{"".join(map(_figure, pictures))}</div>')
    notes = (*report.notes, *(report.attribution.notes if report.attribution else ()), report.error or "")
    lines += [f"<p><small>{escape(note)}</small></p>" for note in notes if note]
    return "".join(lines)


def _words(found: Attribution) -> str:
    """Return the words, each on its colour and with its weight."""
    if found.status != "ok":
        return f"<p>no words, because {escape(found.status)}</p>"
    weights = np.array(found.weights)
    backs = colours(weights, min(0.0, float(weights.min(initial=0))), float(weights.max(initial=0)))
    parts = [
        f'<span style="display:inline-block;text-align:center;margin:0 .15em"><b style="display:block;padding:0 .4em;'
        f"border-radius:.3em;font-weight:500;background:rgb({','.join(map(str, back))});color:{ink(back)}"
        f'">{escape(span.text or NAMES[span.group])}</b><small>{weight:.3g}</small></span>'
        for span, weight, back in zip(found.spans, found.weights, backs, strict=True)
    ]
    return f'<p class="memguard-words" title="{escape(found.unit)}">{"".join(parts)}</p>'


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Return the noise gap of every model call as a line, and in words."""
    values = [rms for _, rms in points]
    top, last = max(values), len(values) - 1
    line = " ".join(f"{i / last * WIDE:.1f},{HIGH - value / top * (HIGH - 4):.1f}" for i, value in enumerate(values))
    highest = values.index(top)
    said = (
        f"noise gap over {len(values)} model calls, RMS: starts at {values[0]:.3g}, highest {top:.3g} at call"
        f" {highest + 1}, ends at {values[-1]:.3g}"
    )
    return (
        f'<figure class="memguard-curve" style="margin:.3em 0"><svg viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" '
        f'height="{HIGH}" role="img" aria-label="{said}"><path d="M0 {HIGH - 0.5}H{WIDE}" stroke="currentColor" '
        f'opacity=".3"/><polyline points="{line}" fill="none" stroke="currentColor" stroke-width="2"/></svg>'
        f"<figcaption><small>{said}</small></figcaption></figure>"
    )


def _figure(picture: tuple[str, str]) -> str:
    caption, url = escape(picture[0]), picture[1]
    return (
        f'<figure style="margin:0"><img alt="{caption}" src="{url}" style="max-width:10em;border-radius:.3em">'
        f"<figcaption><small>{caption}</small></figcaption></figure>"
    )
