"""Which generations are in progress, and whose a pass is that is sampled inside of one. May import: the WebUI.

A detailer samples passes of its own within a generation, with processings that no script is told of, and calls the
scripts' functions with copies of the generation's. Hosts generate one item of one job at a time.
"""

from __future__ import annotations

from typing import Any

from . import host
from .controls import HELD

_open: list[tuple[float, Any]] = []  # jobs and watches, the innermost last


def open(p: Any, watch: Any) -> None:  # noqa: A001 it is the module's own
    """Begin the generation of a processing."""
    watch.own(p)
    setattr(p, HELD, watch)
    _open.append((host.job(), watch))


def close(p: Any) -> None:
    """End the generation of a processing, and those inside of it that an error has ended; the job may go on."""
    watch = getattr(p, HELD, None)
    while any(each is watch for _, each in _open):
        _, last = _open.pop()
        last.leave()
    if not _open:
        host.go_on()


def clear() -> None:
    """Forget generations that an error has ended: those of earlier jobs, and those whose processing is gone."""
    for number in reversed(range(len(_open))):
        job, watch = _open[number]
        if job != host.job() or watch.owner() is None:
            del _open[number]
            watch.leave()


def inside(p: Any) -> bool:
    """Whether a processing is a copy of one whose generation is in progress."""
    watch = getattr(p, HELD, None)
    return watch is not None and watch.owner() is not p and any(each is watch for _, each in _open)


def of(p: Any) -> Any:
    """Return the watch of a pass: its own, or that of the generation inside of which it is; None for neither."""
    if hasattr(p, HELD):
        return getattr(p, HELD)
    return _open[-1][1] if _open and _open[-1][0] == host.job() else None


def owner() -> Any:
    """Return the processing of the innermost generation in progress; None without any."""
    return _open[-1][1].owner() if _open else None
