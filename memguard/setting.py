"""One setting: its default, its range, its sentence. Every front end builds its control from it, and refuses by it."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

from .troubles import Refused

KINDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        default: None where it is optional.
        says: what it is, a sentence.
        more: sentences for where there is room.
        kind: float, int, bool or str; that of the default.
        choices: of a text, each with what it does; "" where the sentence tells.
        least: the smallest number.
        most: the largest.
        above: a number that is too small itself.
        below: a number that is too large itself.
        multiple: of which the number must be one; 0 for any.
        what: what the number is, in place of "a number".
        unit: said behind the range.
        step: of a widget.
        shown: from where to where a widget goes, if not from ``least`` to ``most``.
        unset: number of a widget that stands for None.
        neutral: the number that changes nothing.
        spelled: whether a text that spells a number is one.

    """

    default: Any
    says: str = ""
    more: str = ""
    kind: Any = None
    choices: Mapping[str, str] = field(default_factory=dict)
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    multiple: int = 0
    what: str = ""
    unit: str = ""
    step: float = 0
    shown: tuple[float, float] | None = None
    unset: float | None = None
    neutral: float | None = None
    spelled: bool = False

    def __post_init__(self) -> None:
        if self.kind is None:
            object.__setattr__(self, "kind", type(self.default))

    @property
    def span(self) -> tuple[float, float]:
        """From where to where a widget goes."""
        low, high = self.shown or (self.least, self.most)
        return low if self.unset is None else min(low, self.unset), high

    @property
    def text(self) -> str:
        """The sentence, one for each choice that has its own, and what changes nothing."""
        does = [f"{name}: {each}{'' if each.endswith('?') else '.'}" for name, each in self.choices.items() if each]
        neutral = [] if self.neutral is None else [f"{self.neutral:g} changes nothing."]
        return " ".join(filter(None, [self.says, *does, *neutral]))

    @property
    def whole_text(self) -> str:
        """All that is said."""
        return f"{self.text} {self.more}".strip()

    @property
    def range(self) -> str:
        """The numbers that there are, in words; "" for any."""
        if math.isfinite(self.least) and math.isfinite(self.most):
            said = f"between {written(self.least)} and {written(self.most)}"
        else:
            ends = {"above": self.above, "of at least": self.least, "below": self.below, "of at most": self.most}
            said = " and ".join(f"{end} {written(value)}" for end, value in ends.items() if math.isfinite(value))
        return f"{said} {self.unit}".strip()

    @property
    def give(self) -> str:
        """What is to be given in place of a value that cannot be used."""
        if self.choices:
            return f"use one of {', '.join([*self.choices, *(['None'] if self.default is None else [])])}"
        what = f"a multiple of {self.multiple}" if self.multiple else self.what or KINDS[self.kind]
        out = f"give {what} {self.range}".strip()
        closed = math.isfinite(max(self.least, self.above)) and math.isfinite(min(self.most, self.below))
        if self.kind in (int, float) and not closed and self.default not in (None, self.neutral, self.least):
            out += f", such as {self.default:g}"
        return out if self.neutral is None else f"{out}; {self.neutral:g} changes nothing"

    def read(self, name: str, value: Any) -> Any:
        """Return a value as its kind.

        Args:
            name: of the setting, for the line.
            value: that was given.

        Raises:
            Refused: in one line, with the value and what to give.

        """
        if value is None and self.default is None:
            return None
        try:
            return self._read(value)
        except (ValueError, OverflowError):
            raise Refused(f"{name} is {said(value)}; {self.give}") from None

    def _read(self, value: Any) -> Any:
        if self.kind in (bool, str):
            if not isinstance(value, self.kind) or (self.choices and value not in self.choices):
                raise ValueError
            return value
        if isinstance(value, bool) or not isinstance(value, Real | str if self.spelled else Real):
            raise ValueError
        number = _number(value)
        inside = math.isfinite(number) and self.above < number < self.below and self.least <= number <= self.most
        if not inside or (self.kind is int and number % 1) or (self.multiple and number % self.multiple):
            raise ValueError
        return self.kind(number)


def _number(value: Any) -> int | float:
    if not isinstance(value, str):
        return int(value) if isinstance(value, Integral) else float(value)
    try:
        return int(value)  # a float would round a long seed
    except ValueError:
        return float(value)


def setting(*args: Any, **kwargs: Any) -> Any:
    """Return a dataclass field of a setting with these attributes."""
    made = Setting(*args, **kwargs)
    return field(default=made.default, metadata={"setting": made})


def of(record: Any) -> dict[str, Setting]:
    """Return the settings of a dataclass, or of an object of one, by name."""
    return {each.name: each.metadata["setting"] for each in fields(record) if "setting" in each.metadata}


def written(number: float) -> str:
    """Return a number as it is written: whole ones with all their digits."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def said(value: Any) -> str:
    """Return a value as one short line."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    return short.repr(value)
