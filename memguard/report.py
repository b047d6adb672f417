"""Reports as one self-contained HTML page: no scripts, no external files, readable in light and dark.

May import: memguard.records, memguard.overlay, memguard.texts, memguard.wording, Pillow, numpy.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .overlay import NAMES, colours, ink
from .records import Attribution, Report, Verdict
from .texts import writable
from .wording import SIGNS, odds, place

STYLE = """
:root{color-scheme:light dark;--line:#8884;--soft:#8881}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(19rem,1fr));gap:1rem}
.card{border:1px solid var(--line);border-radius:.6rem;padding:.8rem;background:var(--soft)}
.card p{margin:.3rem 0}.pair{display:flex;gap:.6rem}.pair figure{margin:0;flex:1}
.pair img{width:100%;border-radius:.3rem;image-rendering:auto}figcaption{font-size:.8rem;opacity:.75}
.badge{font-weight:600}
.words{line-height:2}.word{display:inline-block;text-align:center;margin-right:.2rem}
.word b{display:block;padding:0 .4rem;border-radius:.3rem;font-weight:500}
.word small{display:block;opacity:.75;line-height:1.2}
.card figure{margin:0}.card figure img{width:100%;image-rendering:pixelated}
.strip{margin:.6rem 0}.strip figure{max-width:12rem}
.bar{display:grid;grid-template-columns:14rem 1fr 14rem;gap:.6rem;align-items:center}
.bar span{overflow-wrap:anywhere}
.bar i{background:var(--soft);height:.8rem}.bar b{display:block;height:100%;background:currentColor}
.prompt{font-family:ui-monospace,monospace;font-size:.9rem}.note{opacity:.8}
"""
STYLE += "".join(
    f".{verdict}{{color:{sign.letters[0]}}}@media(prefers-color-scheme:dark){{.{verdict}{{color:{sign.letters[1]}}}}}\n"
    for verdict, sign in SIGNS.items()
)


@dataclass(frozen=True)
class Card:
    """One report with the pictures to show beside it: (caption, uint8 [H, W, 3])."""

    report: Report
    pictures: Sequence[tuple[str, np.ndarray]] = ()
    note: str = ""


@dataclass(frozen=True)
class Strip:
    """A row of pictures (caption, uint8 [H, W, 3]) under a text and one line of what is said of them.

    ``verdict`` is a key of SIGNS, and ``badge`` what it is called here.
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
    body = "".join(_section(section) for section in sections)
    return writable(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>{body}</html>\n"
    )


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    if section.words is not None:
        parts.append(_words(section.words))
    if section.bars:
        parts.append("".join(_bar(*bar) for bar in section.bars))
    if section.rows:
        head = "".join(f"<th{_numeric(i)}>{html.escape(cell)}</th>" for i, cell in enumerate(section.header))
        lines = (
            "<tr>" + "".join(f"<td{_numeric(i)}>{html.escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
            for row in section.rows
        )
        parts.append(f"<table><tr>{head}</tr>{''.join(lines)}</table>")
    if section.cards:
        parts.append(f'<div class="cards">{"".join(_card(card) for card in section.cards)}</div>')
    if section.pictures:
        figures = "".join(f'<div class="card">{_figure(*one)}</div>' for one in section.pictures)
        parts.append(f'<div class="cards">{figures}</div>')
    parts += map(_strip, section.strips)
    return "".join(parts)


def _bar(label: str, share: float, says: str) -> str:
    wide = f"{100 * min(max(share, 0.0), 1.0):.1f}%"
    return (
        f'<div class="bar"><span>{html.escape(label)}</span><i class="memorized"><b style="width:{wide}"></b></i>'
        f"<span>{html.escape(says)}</span></div>"
    )


def _strip(strip: Strip) -> str:
    pictures = "".join(_figure(caption, picture) for caption, picture in strip.pictures)
    badge = f'<span class="badge {strip.verdict}">{SIGNS[strip.verdict].mark} {html.escape(strip.badge)}</span>'
    return (
        f'<div class="card strip"><p class="prompt">{html.escape(strip.text)}</p><p>{badge}: {html.escape(strip.says)}'
        f'</p><div class="pair">{pictures}</div></div>'
    )


def _numeric(column: int) -> str:
    return ' class="n"' if column else ""


def _card(card: Card) -> str:
    report, verdict = card.report, card.report.verdict
    finding = report.findings[0] if report.findings else None
    if finding is None or finding.score is None:
        says = html.escape(finding.status if finding else "no score")
    else:
        told = (f"score {finding.score:.3g}, {place(finding)}", odds(finding), finding.caveat)
        says = html.escape("; ".join(part for part in told if part))
    pictures = "".join(_figure(caption, picture) for caption, picture in card.pictures)
    badge = f"{SIGNS[verdict].mark} {SIGNS[verdict].words}"
    note = f'<p class="note">{html.escape(card.note)}</p>' if card.note else ""
    return (
        f'<div class="card"><div class="pair">{pictures}</div><p class="prompt">{html.escape(report.prompt or "")}</p>'
        f'<p><span class="badge {verdict}">{badge}</span>: {says}</p>{note}</div>'
    )


def _figure(caption: str, picture: np.ndarray) -> str:
    words = html.escape(caption)
    return f'<figure><img alt="{words}" src="{_data_url(picture)}"><figcaption>{words}</figcaption></figure>'


def _words(attribution: Attribution) -> str:
    """Return the words of a prompt, each on its colour and with its weight; a screen reader reads both."""
    weights = np.array(attribution.weights)
    backs = colours(weights, min(0.0, float(weights.min(initial=0))), float(weights.max(initial=0)))
    parts = []
    for span, weight, back in zip(attribution.spans, attribution.weights, backs, strict=True):
        style = f"background:rgb({','.join(map(str, back))});color:{ink(back)}"
        word = html.escape(span.text or NAMES[span.group])
        parts.append(f'<span class="word"><b style="{style}">{word}</b><small>{weight:.3g}</small></span>')
    return f'<p class="words">{" ".join(parts)}</p>'


def _data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
