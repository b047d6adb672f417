"""Texts from outside: which can be a prompt, and how they are written where a terminal or a file reads them."""

from __future__ import annotations

import re
from typing import Any

HALF = re.compile("[\ud800-\udfff]")  # lone surrogates: halves of characters, which no encoding can write
# what a terminal obeys instead of showing it: control characters, line separators, reversals of the reading direction
OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

UNREAD = "not scored: the text encoder reads"  # in the note of every prompt that an encoder cuts


def unfit(value: Any) -> str:
    """Return why a value of a list cannot be a prompt; "" where it can."""
    if not isinstance(value, str):
        try:
            said = f" {value!r:.80}"
        except (RecursionError, ValueError):  # nested too deeply, or an integer of too many digits
            said = ""
        return shown(f"the prompt is no text but {type(value).__name__}{said}")
    half = HALF.search(value)
    if half:
        return (
            f"character {half.start() + 1} of the prompt is half of one (U+{ord(half[0]):04X}), which text encoders"
            " cannot read; write it again"
        )
    return ""


def writable(text: str) -> str:
    r"""Return a text that can be written as UTF-8: half characters as ``\ud800``."""
    return text.encode("utf-8", "backslashreplace").decode()


def shortened(text: str, longest: int = 60) -> str:
    """Return the beginning of a text, with dots where something was left out."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def shown(text: str) -> str:
    r"""Return a text as one line that a terminal shows and does not obey: ``\x1b`` for the escape character."""
    return OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def json_line(text: str) -> str:
    r"""Return JSON text that a terminal does not obey: its strings have ``\u009b`` for what ``shown`` replaces."""
    return OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
