"""What a person or a program asks for by name, checked field by field before anything runs.

Every door of the WebUIs uses this: the API's routes, the arguments of alwayson_scripts, the page. What cannot be used
is one line that names the field, what it holds and what to give.

Part of the WebUI hosts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ...setting import Setting, said
from ...table import RUN
from ...troubles import Refused

LONGEST = 10_000  # characters of a prompt
NAME = 200  # characters of a name
SURROGATES = range(0xD800, 0xE000)


class Field(Protocol):
    """One kind of input."""

    def read(self, name: str, value: Any) -> Any:
        """Return the value; raises Refused for one that cannot be used."""


def Number(low: int, high: int) -> Setting:  # noqa: N802 a kind, as the others
    """Return the field of a whole number."""
    return Setting(low, least=low, most=high)


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


PIXELS = replace(RUN["width"], default=512, least=64, most=2048)  # as far as the WebUIs' own sliders go
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
