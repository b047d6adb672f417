"""Reports as one self-contained HTML page: no scripts, no external files, readable in light and dark."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ..overlay import NAMES, colours, ink
from ..records import Attribution, Report, Verdict
from ..texts import writable
from ..wording import odds, place
from . import rendered


@dataclass(frozen=True)
class Card:
    """One report with the pictures to show beside it: (caption, uint8 [H, W, 3])."""

    report: Report
    pictures: Sequence[tuple[str, np.ndarray]] = ()
    note: str = ""


@dataclass(frozen=True)
class Strip:
    """A row of pictures (caption, uint8 [H, W, 3]) under a text and one line of what is said of them.

    ``verdict`` gives the mark and the colour, and ``badge`` what it is called here.
    """

    text: str
    verdict: Verdict
    badge: str
    says: str
    pictures: Sequence[tuple[str, np.ndarray]] = ()


@dataclass(frozen=True)
class Section:
    """A part of the page: text, coloured words, a table, cards, strips, pictures (caption, uint8 [H, W, 3]).

    ``bars`` are labels with a share 0..1 and what is written on it.
    """

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    cards: Sequence[Card] = field(default=())
    words: Attribution | None = None
    pictures: Sequence[tuple[str, np.ndarray]] = ()
    bars: Sequence[tuple[str, float, str]] = ()
    strips: Sequence[Strip] = ()


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return an HTML page that can be written as UTF-8. All text is escaped."""
    ways = {"address": _address, "coloured": _coloured, "said": _said}
    return writable(rendered("report.html", title=title, lead=lead, sections=sections, **ways)) + "\n"


def _said(report: Report) -> str:
    """Return what stands behind the badge of a card."""
    finding = report.findings[0] if report.findings else None
    if finding is None or finding.score is None:
        return finding.status if finding else "no score"
    told = (f"score {finding.score:.3g}, {place(finding)}", odds(finding), finding.caveat)
    return "; ".join(part for part in told if part)


def _coloured(attribution: Attribution) -> Iterator[tuple[str, str, str, float]]:
    """Yield each word with the colours of its ground and of its letters, and its weight."""
    weights = np.array(attribution.weights)
    backs = colours(weights, min(0.0, float(weights.min(initial=0))), float(weights.max(initial=0)))
    for span, weight, back in zip(attribution.spans, attribution.weights, backs, strict=True):
        yield span.text or NAMES[span.group], f"rgb({','.join(map(str, back))})", ink(back), weight


def _address(picture: np.ndarray) -> str:
    """Return a picture, uint8 [H, W, 3], as the address of itself."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
