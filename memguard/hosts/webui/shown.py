"""What a person sees of a session: a sentence for the toast, HTML for below the gallery. All text is escaped.

Part of the WebUI hosts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ...memory import PromptWarning
from ...overlay import NAMES
from ...pages import rendered
from ...records import Attribution, Report
from ...troubles import UNFORESEEN
from ...wording import SIGNS, message
from .places import FIRST, gravity
from .session import Session

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
    blocks = [_block(report, pictures, (place.name or FIRST) if named else "") for report, place, pictures in passes]
    return rendered("panel.html", stopped=session.stopped, blocks=blocks, strongest=INK, wide=WIDE, high=HIGH)


def failed(why: str) -> str:
    """Return the panel of a check that came to nothing."""
    return rendered("failed.html", why=why)


def known(warning: PromptWarning | None) -> str:
    """Return the line about a prompt that was typed; "" where nothing is known of it."""
    if warning is None:
        return ""
    what = "this prompt" if warning.kind == "prompt" else f"a prompt with {', '.join(warning.words)}"
    words = SIGNS[warning.verdict].words.replace("looks", "looked")
    score = "" if warning.score is None else f" (score {warning.score:.3g})"
    return rendered("known.html", verdict=warning.verdict, says=f"{what} {words}{score} before")


def _block(report: Report, pictures: Sequence[tuple[str, str]], name: str) -> dict[str, Any]:
    """Return what the panel shows of a pass."""
    says = message(report)
    own = [finding for finding in report.findings if not finding.carried]
    scored = next((finding for finding in own if len(finding.scores) > 1), None)
    notes = (*report.notes, *(report.attribution.notes if report.attribution else ()))
    return {
        "verdict": report.verdict if report.verdict_after == "unknown" else report.verdict_after,
        "says": (f"{name}: " if name else "") + says.removeprefix("MemGuard: "),
        "scores": ["none" if math.isnan(score) else f"{score:.3g}" for score in scored.scores] if scored else (),
        "found": report.attribution,
        "words": _words(report.attribution) if report.attribution else (),
        "curve": _curve(report.curve) if len(report.curve) > 1 else None,
        "pictures": pictures,
        "notes": (*notes, UNFORESEEN) if report.error and UNFORESEEN not in says else notes,
    }


def _words(found: Attribution) -> Iterator[tuple[str, float, float]]:
    """Yield each word with its weight and its share 0..1 of the heaviest one's: the heavier, the more ink."""
    top = max(found.weights, default=0.0)
    for span, weight in zip(found.spans, found.weights, strict=True):
        yield span.text or NAMES[span.group], weight, max(weight, 0.0) / top if top > 0 else 0.0


def _curve(points: Sequence[tuple[float, float]]) -> dict[str, str]:
    """Return the noise gap of every model call as the points of a line, and in words."""
    values = [rms for _, rms in points]
    top, last = max(values), len(values) - 1
    scale = (HIGH - 4) / top if top > 0 else 0.0  # all gaps are 0 where the prompt is the negative one
    line = " ".join(f"{i / last * WIDE:.1f},{HIGH - value * scale:.1f}" for i, value in enumerate(values))
    highest = values.index(top)
    says = (
        f"noise gap over {len(values)} model calls, RMS: starts at {values[0]:.3g}, highest {top:.3g} at call"
        f" {highest + 1}, ends at {values[-1]:.3g}"
    )
    return {"line": line, "says": says}
