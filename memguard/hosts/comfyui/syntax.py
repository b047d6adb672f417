"""The texts that a prompt with a syntax of its own is encoded from: BREAK, AND, schedules such as [a:b:0.5].

Packs for prompt control encode these texts one by one; which of them stands behind a conditioning is told by encoding
them again. Part of the ComfyUI host.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SPLITS = re.compile(r"\b(?:BREAK|AND)\b")
WEIGHT = re.compile(r"\s*:\s*-?\d*\.?\d+\s*$")  # of a part of AND
SCHEDULE = re.compile(r"\[([^\[\]:]*):(?:([^\[\]:]*):)?\s*\d*\.?\d+\s*\]")  # [before:after:when], [after:when]
CHANGES = 4  # of one prompt that are followed one by one; each doubles the number of texts


def encoded_from(texts: Sequence[str]) -> tuple[str, ...]:
    """Return texts and what they may be encoded as, each once; the texts themselves come first."""
    found = dict.fromkeys(texts)
    for text in texts:
        for moment in _moments(text):
            parts = [part.strip() for part in SPLITS.split(moment)]
            for part in (moment.strip(), *parts, *(WEIGHT.sub("", part) for part in parts)):
                if part:
                    found[part] = None
    return tuple(found)


def _moments(text: str) -> list[str]:
    """Return a text as it reads before and after each change of its schedule."""
    whole, open_ = [], [text]
    for _ in range(CHANGES):
        whole += [each for each in open_ if not SCHEDULE.search(each)]
        open_ = [made for each in open_ if SCHEDULE.search(each) for made in _first_change(each)]
    return whole + [each for each in open_ if not SCHEDULE.search(each)]


def _first_change(text: str) -> tuple[str, str]:
    match = SCHEDULE.search(text)
    assert match is not None
    before, after = (match[1], match[2]) if match[2] is not None else ("", match[1])
    left, right = text[: match.start()], text[match.end() :]
    return f"{left}{before}{right}", f"{left}{after}{right}"
