"""Which generations are in progress, and whose a pass is that is sampled inside of one.

A detailer samples passes of its own within a generation, with processings that no script is told of, and calls the
scripts' functions with copies of the generation's. Hosts generate one item of one job at a time.

A watch is held by its processing alone: where an error ends a generation, nobody is told, and the host may load another
checkpoint next, while the watch knows the network of this one.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

from . import host
from .controls import HELD

_open: list[tuple[float, ref[Any]]] = []  # jobs and watches, the innermost last


def open(p: Any, watch: Any) -> None:  # noqa: A001 it is the module's own
    """Begin the generation of a processing."""
    watch.own(p)
    setattr(p, HELD, watch)
    _open.append((host.job(), ref(watch)))


def close(p: Any) -> None:
    """End the generation of a processing, and those inside of it that an error has ended; the job may go on."""
    watch = getattr(p, HELD, None)
    while any(held() is watch for _, held in _open):
        _, held = _open.pop()
        _left(held())
    if not _open:
        host.go_on()


def clear() -> None:
    """Forget generations that an error has ended: those of earlier jobs, and those whose processing is gone."""
    for number in reversed(range(len(_open))):
        job, held = _open[number]
        watch = held()
        if watch is None or job != host.job() or watch.owner() is None:
            del _open[number]
            _left(watch)


def inside(p: Any) -> bool:
    """Whether a processing is a copy of one whose generation is in progress."""
    watch = getattr(p, HELD, None)
    return watch is not None and watch.owner() is not p and any(held() is watch for _, held in _open)


def open_of(p: Any) -> bool:
    """Whether the generation of a processing is in progress."""
    watch = getattr(p, HELD, None)
    return watch is not None and watch.owner() is p and any(held() is watch for _, held in _open)


def of(p: Any) -> Any:
    """Return the watch of a pass: its own, or that of the generation inside of which it is; None for neither."""
    if hasattr(p, HELD):
        return getattr(p, HELD)
    job, watch = _innermost()
    return watch if job == host.job() else None


def owner() -> Any:
    """Return the processing of the innermost generation in progress; None without any."""
    watch = _innermost()[1]
    return None if watch is None else watch.owner()


def _innermost() -> tuple[float, Any]:
    """Return the job and the watch of the innermost generation that is not gone."""
    known = ((job, held()) for job, held in reversed(_open))
    return next(((job, watch) for job, watch in known if watch is not None), (0.0, None))


def _left(watch: Any) -> None:
    if watch is not None:
        watch.leave()
