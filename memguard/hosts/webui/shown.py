"""What a person sees of a session: a sentence for the toast, HTML for below the gallery. All text is escaped.

Part of the WebUI hosts; may import: memguard's core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from ...memory import PromptWarning
from ...overlay import NAMES
from ...records import Attribution, Report
from ...troubles import UNFORESEEN
from ...wording import SIGNS, message
from .places import FIRST, gravity
from .session import Session

STYLE = "<style>{}</style>".format(
    "".join(
        ".memguard-{0}{{color:{1}}}.dark .memguard-{0}{{color:{2}}}".format(name, *sign.letters)
        for name, sign in SIGNS.items()
    )
)
INK = 30  # per cent of the letters' colour behind the heaviest word: the strongest ink in either theme
WIDE, HIGH = 240, 60  # of the curve, in its own units


def warning(session: Session) -> str:
    """Return the toast's text, "" for no toast.

    Policies "warn" and "stop" warn of a run that looks memorized, and all of settings that cannot be used.
    """
    if session.stopped or session.trouble:
        return session.stopped or f"MemGuard: off, because {session.trouble}"
    report = session.gravest
    flagged = report is not None and report.flagged and session.guard.policy != "observe"
    return message(report) if flagged and report is not None else ""


def html(session: Session) -> str:
    """Return the panel: a block for each pass, the gravest first, with its scores, words, curve, maps and notes."""
    passes = list(zip(session.reports, session.places, session.pictures, strict=True))
    passes.sort(key=lambda each: -gravity(each[0]))  # the gravest first, the others in their order
    named = len(passes) > 1
    blocks = "".join(
        _block(report, pictures, (place.name or FIRST) if named else "") for report, place, pictures in passes
    )
    stopped = f'<p class="memguard-memorized">{escape(session.stopped)}</p>' if session.stopped else ""
    return f'{STYLE}<div class="memguard-panel">{stopped}{blocks}</div>'


def known(warning: PromptWarning | None) -> str:
    """Return the line about a prompt that was typed; "" where nothing is known of it."""
    if warning is None:
        return ""
    what = "this prompt" if warning.kind == "prompt" else f"a prompt with {', '.join(warning.words)}"
    verdict = SIGNS[warning.verdict].words.replace("looks", "looked")
    score = "" if warning.score is None else f" (score {warning.score:.3g})"
    line = escape(f"{what} {verdict}{score} before")
    return f'{STYLE}<p class="memguard-known memguard-{escape(warning.verdict)}">MemGuard: {line}</p>'


def _block(report: Report, pictures: Sequence[tuple[str, str]], name: str) -> str:
    verdict = report.verdict if report.verdict_after == "unknown" else report.verdict_after
    mark = f'<b class="memguard-{verdict}" aria-hidden="true">{SIGNS[verdict].mark}</b>'
    lines = [f"<p>{mark} {escape(f'{name}: ' if name else '')}{escape(message(report).removeprefix('MemGuard: '))}</p>"]
    own = [finding for finding in report.findings if not finding.carried]
    scored = next((finding for finding in own if len(finding.scores) > 1), None)
    if scored is not None:
        told = ("none" if math.isnan(score) else f"{score:.3g}" for score in scored.scores)
        lines.append(f"<p>by image: {', '.join(told)}</p>")
    if report.attribution is not None:
        lines.append(_words(report.attribution))
    if len(report.curve) > 1:
        lines.append(_curve(report.curve))
    if pictures:
        lines.append(f'<div style="display:flex;flex-wrap:wrap;gap:.5em">{"".join(map(_figure, pictures))}</div>')
    notes = (*report.notes, *(report.attribution.notes if report.attribution else ()))
    notes = (*notes, UNFORESEEN) if report.error and UNFORESEEN not in lines[0] else notes
    lines += [f"<p><small>{escape(note)}</small></p>" for note in notes if note]
    return "".join(lines)


def _words(found: Attribution) -> str:
    """Return the words, each with its weight and the more ink the heavier it is."""
    if found.status != "ok":
        return f"<p>no words, because {escape(found.status)}</p>"
    top = max(found.weights, default=0.0)
    parts = [
        f'<span style="display:inline-block;text-align:center;margin:0 .15em"><b style="display:block;padding:0 .4em;'
        f"border-radius:.3em;font-weight:{500 + 200 * (share > 0.5)};border-bottom:{1 + 3 * share:.1f}px solid;"
        f'background:color-mix(in srgb, currentColor {INK * share:.0f}%, transparent)">'
        f"{escape(span.text or NAMES[span.group])}</b><small>{weight:.3g}</small></span>"
        for span, weight in zip(found.spans, found.weights, strict=True)
        for share in (max(weight, 0.0) / top if top > 0 else 0.0,)
    ]
    return f'<p class="memguard-words" title="{escape(found.unit)}">{"".join(parts)}</p>'


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Return the noise gap of every model call as a line, and in words."""
    values = [rms for _, rms in points]
    top, last = max(values), len(values) - 1
    scale = (HIGH - 4) / top if top > 0 else 0.0  # all gaps are 0 where the prompt is the negative one
    line = " ".join(f"{i / last * WIDE:.1f},{HIGH - value * scale:.1f}" for i, value in enumerate(values))
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
