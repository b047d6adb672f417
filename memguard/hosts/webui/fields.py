"""What a person or a program asks for by name, checked field by field before anything runs.

Every door of the WebUIs uses this: the API's routes, the arguments of alwayson_scripts, the page. What cannot be used
is one line that names the field, what it holds and what to give.

Part of the WebUI hosts; may import: memguard's core.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...troubles import Refused

SIZES, STEP = (64, 2048), 8  # pixels
LONGEST = 10_000  # characters of a prompt
NAME = 200  # characters of a name
SURROGATES = range(0xD800, 0xE000)


class Field(Protocol):
    """One kind of input."""

    def read(self, name: str, value: Any) -> Any:
        """Return the value; raises Refused for one that cannot be used."""


@dataclass(frozen=True)
class Number:
    """A finite number.

    Attributes:
        low: smallest.
        high: largest.
        whole: whether it must be an integer.
        step: of which it must be a multiple; 0 for any.
        unit: said behind the numbers.
        spelled: whether a text that spells a number is one.

    """

    low: float
    high: float
    whole: bool = True
    step: int = 0
    unit: str = ""
    spelled: bool = False

    def read(self, name: str, value: Any) -> Any:
        """Return the number as int or float."""
        try:
            if isinstance(value, bool) or not isinstance(value, int | float | str if self.spelled else int | float):
                raise ValueError
            number = float(value)
            right = math.isfinite(number) and self.low <= number <= self.high
            right = right and not (self.whole and number % 1) and not (self.step and number % self.step)
        except (ValueError, OverflowError):
            right = False
        if not right:
            kind = f"a multiple of {self.step}" if self.step else "a whole number" if self.whole else "a number"
            unit = f" {self.unit}" if self.unit else ""
            raise Refused(f"{name} is {said(value)}; give {kind} between {self.low:g} and {self.high:g}{unit}")
        return int(number) if self.whole else number


@dataclass(frozen=True)
class Text:
    """A text that can be written down.

    Attributes:
        longest: number of characters.
        needed: whether it must hold something.

    """

    longest: int = LONGEST
    needed: bool = False

    def read(self, name: str, value: Any) -> str:
        """Return the text."""
        if not isinstance(value, str):
            raise Refused(f"{name} is {said(value)}; give a text")
        if len(value) > self.longest:
            raise Refused(f"{name} has {len(value)} characters; give at most {self.longest}")
        if any(ord(each) in SURROGATES for each in value):
            raise Refused(f"{name} holds half a character (a lone surrogate); write it anew")
        if self.needed and not value.strip():
            raise Refused(f"{name} is empty; give a text")
        return value


@dataclass(frozen=True)
class Choice:
    """One of a few texts."""

    choices: Sequence[str]

    def read(self, name: str, value: Any) -> str:
        """Return the choice."""
        if not isinstance(value, str) or value not in self.choices:
            raise Refused(f"{name} is {said(value)}; use one of {', '.join(self.choices)}")
        return value


@dataclass(frozen=True)
class Truth:
    """True or false, and no word for it."""

    def read(self, name: str, value: Any) -> bool:
        """Return the truth."""
        if not isinstance(value, bool):
            raise Refused(f"{name} is {said(value)}; give true or false")
        return value


@dataclass(frozen=True)
class Texts:
    """A list of texts.

    Attributes:
        most: number of them.
        remedy: what to give instead.

    """

    most: int = 10_000
    remedy: str = "give some, or none"

    def read(self, name: str, value: Any) -> tuple[str, ...]:
        """Return the texts."""
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
            raise Refused(f"{name} is no list of texts; {self.remedy}")
        if len(value) > self.most:
            raise Refused(f"{name} holds {len(value)} texts; give at most {self.most}")
        return tuple(Text().read(f"{name}, number {number}", text) for number, text in enumerate(value, 1))


PIXELS = Number(*SIZES, step=STEP, unit="pixels")  # width or height
STEPS = (1, 150)


def read(fields: Mapping[str, Field], given: Any, of: str) -> dict[str, Any]:
    """Return what was given, each field checked.

    Args:
        fields: that there are.
        given: by name; what is missing stays missing.
        of: what they are settings of, for the line.

    Raises:
        Refused: naming the first field that cannot be used.

    """
    if not isinstance(given, Mapping):
        raise Refused(f"{said(given)} is no object of settings {of}; give names and values")
    unknown = next((name for name in given if name not in fields), None)
    if unknown is not None:
        raise Refused(f"{said(unknown)} is no setting {of}; there are {', '.join(fields)}")
    return {name: fields[name].read(name, value) for name, value in given.items()}


def said(value: Any) -> str:
    """Return a value as one short line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    return short.repr(value)
