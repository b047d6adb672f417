"""Progress where no terminal shows a bar: in a log a line says now and then how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ..texts import shown

Item = TypeVar("Item")
EVERY = 60.0  # seconds between two lines


def say(line: str) -> None:
    """Print one line on stderr where that is no terminal."""
    if not sys.stderr.isatty():
        print(shown(line), file=sys.stderr, flush=True)


def counted(
    items: Iterable[Item], total: int, before: str, after: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[Item]:
    """Yield items, and say how many of them there were, at most once in EVERY seconds.

    Args:
        items: whatever takes time.
        total: how many.
        before: what stands in a line before "3 of 8".
        after: what stands behind it.
        clock: seconds.

    """
    last = clock()
    for number, item in enumerate(items, 1):
        now = clock()
        if now - last >= EVERY and number < total:
            last = now
            say(f"{before}{number} of {total}{after}")
        yield item
