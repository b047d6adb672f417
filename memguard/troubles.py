"""Errors in words: which of them were written for a person, and what is said of the others."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

QUANTISED = re.compile(r"float8|not implemented for|derivative|does not require grad|autograd|int8", re.IGNORECASE)
IN_PLACE = re.compile(r"in-?place", re.IGNORECASE)
UNFORESEEN = "an error inside MemGuard; the host's log tells more"


class Told(Exception):
    """An error whose text is a sentence for the person at the screen: what is wrong and what to do."""


class Refused(Told, ValueError):
    """A setting, a file or a request that cannot be worked with; the text gives the value and the remedy."""


class NotFinite(Told, FloatingPointError):
    """A computation of ours that came to NaN or infinity; the text says what helps."""


class NoGradient(Told, RuntimeError):
    """Why a model has no gradients (quantised weights, a node or a model that computes without), in words."""


def in_words(error: BaseException) -> str:
    """Return one line that says what an error means; never the text of an error that was written for programmers."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "not enough memory; use fewer images, or a mitigation without gradients such as padding"
    if isinstance(error, Told):
        return (str(error).strip() or UNFORESEEN).splitlines()[0]
    if isinstance(error, RuntimeError) and QUANTISED.search(str(error)):
        return "these weights have no gradient; use one without gradients such as padding or noise_adjustment"
    if isinstance(error, RuntimeError) and IN_PLACE.search(str(error)):
        return "another extension changes values inside the model in place, so there is no gradient; use a way without"
    return UNFORESEEN


def of_pipeline(error: BaseException) -> str:
    """Return one line that says that a host's own pipeline failed; what it said belongs into a report's ``error``."""
    said = in_words(error)
    return (
        f"the pipeline failed ({type(error).__name__}); the row's error has its words" if said == UNFORESEEN else said
    )


@contextmanager
def careful(failed: Callable[[Exception], None], *passing: type[BaseException]) -> Iterator[None]:
    """Hand an error inside the block to ``failed``, which may raise another; the block then ends.

    Args:
        failed: what becomes of the error.
        passing: exceptions that pass: those that end a run because somebody asked for it.

    """
    ending: tuple[type[BaseException], ...] = passing
    try:
        yield
    except ending:
        raise
    except Exception as error:
        failed(error)
