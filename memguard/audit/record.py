"""What an audit found, as values: one sentence, and JSON that is the same bytes for the same findings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..texts import writable
from ..version import VERSION
from .checkpoints import Age
from .copied import Threshold
from .duplicates import Group
from .three_samples import Cell, ThreeSamples

SCHEMA = "memguard audit 1"
DIGITS = 6  # significant digits of what is measured; more would differ between machines


@dataclass(frozen=True)
class Checked:
    """One training picture under one checkpoint.

    Attributes:
        name: of the picture, inside the folder.
        caption: that its pictures were generated from.
        copied: whether it comes out of the model, from whatever caption.
        near: whether it is not, but an image of its caption comes nearer to it than any held-out caption's to its own.
        copies: how many of the images of its own caption are copies of it.
        captions: names of the pictures whose captions bring it as well.
        own: similarity of each image of its caption to it.
        own_before: the same without the LoRA; empty where that was not made.
        other: the other picture that an image of its caption is most like.
        other_similarity: how alike they are.
        score: of the first step; None where there is none.
        score_before: the same without the LoRA, on the same noise.
        image: file of the image that is most like it, inside the folder of the report.

    """

    name: str
    caption: str
    copied: bool
    near: bool
    copies: int
    captions: tuple[str, ...]
    own: tuple[float, ...]
    own_before: tuple[float, ...] = ()
    other: str = ""
    other_similarity: float = 0.0
    score: float | None = None
    score_before: float | None = None
    image: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """One LoRA, or one fine-tuned model.

    Attributes:
        name: of the file, under which it was given.
        digest: SHA-256 of the file, its first 16 hex digits.
        age: how long it was trained, as far as its file says so.
        threshold: from where on a picture is called a copy.
        test: of the three samples.
        pictures: all that were checked.
        error: why it could not be audited; "" where it was.

    """

    name: str
    digest: str
    age: Age
    threshold: Threshold | None = None
    test: ThreeSamples | None = None
    pictures: tuple[Checked, ...] = ()
    error: str = ""

    @property
    def copied(self) -> int:
        """How many training pictures come out."""
        return sum(each.copied for each in self.pictures)

    @property
    def known(self) -> int:
        """How many of these come out of the model without the training, too, from their own captions."""
        if self.threshold is None:
            return 0
        return sum(each.copied and max(each.own_before, default=0) > self.threshold.value for each in self.pictures)


@dataclass(frozen=True)
class Audit:
    """All checkpoints of one training.

    Attributes:
        model: fingerprint of the base model; "" where there is none.
        settings: that the pictures were made with.
        checkpoints: in the order of their age.
        duplicates: groups of near duplicates among the training pictures.
        notes: one line for each thing in the folders that was left out.

    """

    model: str
    settings: Mapping[str, Any]
    checkpoints: tuple[Checkpoint, ...]
    duplicates: tuple[Group, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def done(self) -> tuple[Checkpoint, ...]:
        """The checkpoints that could be audited."""
        return tuple(each for each in self.checkpoints if not each.error)

    @property
    def verdict(self) -> str:
        """What was found, in one sentence."""
        done, total = self.done, len(self.checkpoints)
        if not done:
            return "could not be audited"
        failed = "" if len(done) == total else f"; {total - len(done)} of {total} checkpoints could not be audited"
        return self._found(done) + failed

    def _found(self, done: tuple[Checkpoint, ...]) -> str:
        worst = max(done, key=lambda each: each.copied)
        last = done[-1]
        count, images = len(last.pictures), max((len(each.own) for each in last.pictures), default=0)
        if not worst.copied:
            which = "" if len(done) == 1 else f", none of {len(done)} checkpoints does"
            of = "1 image" if images == 1 else f"{images} images"
            return f"copies none of {count} pictures in {of} of each caption{which}"
        known = f"; {last.known} of these also without the training" if last.known else ""
        if len(done) == 1:
            return f"copies {last.copied} of {count} pictures{known}"
        first = next(i for i, each in enumerate(done) if each.copied)
        clean = f"{done[first - 1].age.said(done[first - 1].name)} is clean" if first else "no checkpoint before it"
        said = f"copies {last.copied} of {count} pictures; first at {done[first].age.said(done[first].name)} ({clean})"
        most = "" if worst.copied == last.copied else f", most at {worst.age.said(worst.name)}: {worst.copied}"
        return said + most + known

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values = asdict(self)
        return {"schema": SCHEMA, "memguard": VERSION, "verdict": self.verdict, **_plain(values)}

    def to_json(self) -> str:
        """Return canonical JSON: keys in order, numbers of six digits, no times and no paths."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, sort_keys=True, indent=1) + "\n"


def read(text: str) -> Audit:
    """Return the audit of ``to_json``.

    Raises:
        ValueError: for anything else.

    """
    try:
        values = json.loads(text)
        if values["schema"] != SCHEMA:
            raise ValueError(f"schema {values['schema']!r}; this memguard reads {SCHEMA}")
        found = tuple(_checkpoint(each) for each in values["checkpoints"])
        groups = tuple(Group(**each | {"names": tuple(each["names"])}) for each in values["duplicates"])
        return Audit(values["model"], values["settings"], found, groups, tuple(values["notes"]))
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no audit of memguard ({type(error).__name__})") from None


def _checkpoint(values: dict[str, Any]) -> Checkpoint:
    test = values["test"]
    if test is not None:
        cells = tuple(Cell(**each | {"pictures": tuple(each["pictures"])}) for each in test["cells"])
        test = ThreeSamples(**test | {"cells": cells})
    lists = ("captions", "own", "own_before")
    pictures = tuple(Checked(**each | {name: tuple(each[name]) for name in lists}) for each in values["pictures"])
    threshold = values["threshold"] and Threshold(**values["threshold"])
    return Checkpoint(
        **values | {"age": Age(**values["age"]), "threshold": threshold, "test": test, "pictures": pictures}
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return writable(value) if isinstance(value, str) else value
