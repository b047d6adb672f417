"""A picture of two pictures: before and after a mitigation, with their names and a table of scores below."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from .distance import gravest
from .overlay import FONT, letters, written
from .records import Report
from .wording import mean

GAP = 8  # pixels between the pictures
LINE = FONT + 6
LABELS = ("before", "after")


def table(report: Report) -> list[str]:
    """Return the lines that tell a run's scores and attempts; one line says why there are none."""
    scored = gravest(report.findings) or next((f for f in report.findings if f.score is not None), None)
    if scored is None or scored.score is None:
        return ["no score" if not report.findings else f"no score, because {report.findings[0].status}"]
    which = "score before" if report.attempts else "score of the right picture"
    lines = [f"{which} {scored.score:.3g}, {scored.verdict}"]
    for number, attempt in enumerate(report.attempts, 1):
        left = mean(attempt.scores)
        score = "not scored" if left is None else f"{left:.3g}, {attempt.verdict}"
        lines.append(f"{number}. {attempt.mitigation}: {score}, {'kept' if attempt.kept else 'taken back'}")
    if report.attempts and not any(attempt.kept for attempt in report.attempts):
        lines.append("could not be mitigated, the picture is the unmitigated one")
    return lines


def compare(before: np.ndarray, after: np.ndarray, lines: list[str], labels: tuple[str, str] = LABELS) -> np.ndarray:
    """Lay two pictures side by side.

    Args:
        before: uint8 [H, W, 3].
        after: uint8, scaled to the height of the other.
        lines: of text below.
        labels: over the pictures.

    Returns:
        uint8 [H + labels and lines, W + gap + W', 3].

    """
    left, right = Image.fromarray(before), Image.fromarray(after)
    if right.height != left.height:
        width = round(right.width * left.height / right.height)
        right = right.resize((width, left.height), Image.Resampling.BICUBIC)
    font, lines = letters(), [written(line) for line in lines]
    least = max((int(font.getlength(line)) for line in lines), default=0) + 2 * GAP
    wide = left.width + GAP + right.width
    canvas = Image.new("RGB", (max(wide, least), left.height + LINE * (1 + len(lines)) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for picture, label, x in ((left, labels[0], 0), (right, labels[1], left.width + GAP)):
        canvas.paste(picture, (x, LINE))
        draw.text((x + 3, 2), label, "black", font)
    for number, line in enumerate(lines):
        draw.text((GAP, left.height + LINE * (1 + number) + GAP // 2), line, "black", font)
    return np.asarray(canvas)
