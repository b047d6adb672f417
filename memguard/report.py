"""Reports as one self-contained HTML page: no scripts, no external files, readable in light and dark.

May import: memguard.records, Pillow, numpy.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .records import Report, percent

STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--memorized:#c2372e;--suspicious:#b26a00;--ordinary:#2e7d4f}
@media(prefers-color-scheme:dark){:root{--memorized:#ff8a80;--suspicious:#ffb74d;--ordinary:#81c995}}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(19rem,1fr));gap:1rem}
.card{border:1px solid var(--line);border-radius:.6rem;padding:.8rem;background:var(--soft)}
.card p{margin:.3rem 0}.pair{display:flex;gap:.6rem}.pair figure{margin:0;flex:1}
.pair img{width:100%;border-radius:.3rem;image-rendering:auto}figcaption{font-size:.8rem;opacity:.75}
.badge{font-weight:600}.memorized{color:var(--memorized)}.suspicious{color:var(--suspicious)}.ordinary{color:var(--ordinary)}
.prompt{font-family:ui-monospace,monospace;font-size:.9rem}.note{opacity:.8}
"""
MARKS = {"memorized": "●", "suspicious": "◐", "ordinary": "○", "unknown": "–"}
WORDS = {"memorized": "looks memorized", "suspicious": "may be memorized", "ordinary": "looks ordinary"}


@dataclass(frozen=True)
class Card:
    """One report with the pictures to show beside it: (caption, uint8 [H, W, 3])."""

    report: Report
    pictures: Sequence[tuple[str, np.ndarray]] = ()
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page: text, a table, cards."""

    title: str
    text: str = ""
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    cards: Sequence[Card] = field(default=())


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Return an HTML page. All text is escaped."""
    body = "".join(_section(section) for section in sections)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{body}</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    if section.rows:
        head = "".join(f"<th{_numeric(i)}>{html.escape(cell)}</th>" for i, cell in enumerate(section.header))
        lines = (
            "<tr>" + "".join(f"<td{_numeric(i)}>{html.escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
            for row in section.rows
        )
        parts.append(f"<table><tr>{head}</tr>{''.join(lines)}</table>")
    if section.cards:
        parts.append(f'<div class="cards">{"".join(_card(card) for card in section.cards)}</div>')
    return "".join(parts)


def _numeric(column: int) -> str:
    return ' class="n"' if column else ""


def _card(card: Card) -> str:
    report, verdict = card.report, card.report.verdict
    finding = report.findings[0] if report.findings else None
    if finding is None or finding.score is None:
        says = html.escape(finding.status if finding else report.error or "no score")
    else:
        says = f"score {finding.score:.3g}"
        if finding.percentile is not None:
            says += f", higher than {percent(finding.percentile)} of ordinary prompts"
    pictures = "".join(
        f'<figure><img alt="{html.escape(caption)}" src="{_data_url(picture)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, picture in card.pictures
    )
    badge = f"{MARKS[verdict]} {WORDS.get(verdict, 'no verdict')}"
    note = f'<p class="note">{html.escape(card.note)}</p>' if card.note else ""
    return (
        f'<div class="card"><div class="pair">{pictures}</div><p class="prompt">{html.escape(report.prompt or "")}</p>'
        f'<p><span class="badge {verdict}">{badge}</span>: {says}</p>{note}</div>'
    )


def _data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
