"""What all readers of lists share: what is said of bad input, and which column holds the prompts."""

from __future__ import annotations

from collections.abc import Sequence

from ..troubles import Told

COLUMNS = ("prompt", "prompts", "caption", "captions", "text", "texts")
LONGEST = 1 << 24  # characters of a line or a cell: more is no list of prompts, and would fill the memory


class BadInput(Told):
    """Input that cannot be used: one line that names it and the remedy."""


def find_column(names: Sequence[str], asked: str | None, where: str) -> str:
    """Return which of the names is asked for, or that of the prompts; exact names first, then in other case.

    Raises:
        BadInput: if there is none.

    """
    for name in (asked,) if asked else COLUMNS:
        if name in names:
            return name
        for given in names:
            if given.strip().casefold() == name.casefold():
                return given
    has = ", ".join(names[:10]) or "none"
    if asked:
        raise BadInput(f"{where}: no column {asked}; there are: {has}")
    raise BadInput(f"{where}: no column prompt, caption or text; there are: {has}; choose one with --column")
