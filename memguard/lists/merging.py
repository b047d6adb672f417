"""Rows of finished scans, read together: shards of a folder or files of whole scans, in the order of the list."""

from __future__ import annotations

import csv
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import shards
from .columns import LONGEST, BadInput
from .rows import settings_of
from .shards import Shard

SUFFIXES = (".jsonl", ".csv", ".parquet")
NO_ROW = (ValueError, LookupError, ArithmeticError, TypeError, AttributeError, RecursionError)  # by what stands there
TAIL = 1 << 16  # bytes at the end of a file that are read at a time


@dataclass(frozen=True)
class Row:
    """One prompt and what one detector said of it; None for what is not known."""

    index: int
    prompt: str | None
    detector: str
    score: float | None
    rms: float | None
    below: int | None
    count: int | None
    verdict: str
    status: str
    error: str | None
    source: str  # where its threshold comes from, or why there is none
    sigma: float | None
    model: str
    sampler: str | None
    reference: str
    settings: dict[str, Any]
    promoted: bool | None = None  # by a pre-scan; None without one
    notes: tuple[str, ...] = ()


class Damaged(BadInput):
    """A file whose rows are not all there, or not rows of memguard."""


@dataclass(frozen=True)
class Part:
    """A file, and its shard where it is one."""

    path: Path
    shard: Shard | None = None

    @property
    def called(self) -> str:
        """The name for errors."""
        return str(self.path) if self.shard is None else f"shard {self.shard.number}/{self.shard.of}"

    def rows(self, detector: str | None) -> Iterator[Row]:
        """Yield the rows, whose numbers must follow each other.

        Args:
            detector: whose findings are read; None is the first.

        Raises:
            Damaged: where a row is missing, doubled or unreadable.

        """
        first = expected = 0 if self.shard is None else self.shard.start
        try:
            for values in _read(self.path):
                row = _row(values, detector)
                if row.index != expected:
                    raise Damaged(f"row {row.index} stands where {expected} belongs")
                expected += 1
                yield row
        except BadInput:
            raise
        except (*NO_ROW, csv.Error, OSError):
            raise Damaged(f"it cannot be read behind {expected - first} rows") from None
        except Exception as error:  # pyarrow's own, which derive from Exception alone
            if not type(error).__module__.startswith("pyarrow"):
                raise
            raise Damaged(f"it cannot be read behind {expected - first} rows") from None
        if self.shard is not None and expected != self.shard.stop:
            raise Damaged(f"it holds {expected - first} of {self.shard.stop - first} rows")


def is_whole(path: Path) -> bool:
    """Whether the rows of a shard's file are all there, by reading them as ``memguard merge`` does."""
    try:
        for _ in Part(path, Shard.of_name(path.name)).rows(None):
            pass
    except Damaged:
        return False
    return True


def has_end(path: Path) -> bool:
    """Whether the last row of a shard's file is there, which one that was cut lacks; nothing else is read."""
    shard = Shard.of_name(path.name)
    assert shard is not None
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return int(pyarrow.parquet.read_metadata(path).num_rows) == shard.stop - shard.start
        last = _last_line(path)
        return not last if shard.start == shard.stop else json.loads(last)["index"] == shard.stop - 1
    except (ValueError, KeyError, TypeError, RecursionError, OSError):  # also pyarrow's ArrowInvalid
        return False


def _last_line(path: Path) -> bytes:
    """Return the last line of a file, b"" of an empty one; a row is whole without the end of its line, too."""
    with path.open("rb") as file:
        size = place = file.seek(0, os.SEEK_END)
        tail = b""
        while place and tail.rstrip(b"\n").count(b"\n") == 0:
            place = max(0, place - TAIL)
            file.seek(place)
            tail = file.read(size - place)
    return tail.removesuffix(b"\n").rpartition(b"\n")[2]


def parts(path: Path, settings: str | None) -> tuple[list[Part], list[str]]:
    """Return the files of a scan in order, and what is missing, in words.

    Args:
        path: a file of results, or a folder of shards.
        settings: hex digits of one of several scans in a folder.

    Raises:
        BadInput: for another file, and a folder that holds no scan or several.

    """
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise BadInput(f"{path}: memguard merges .jsonl, .csv and .parquet, and folders of shards")
        return [Part(path, Shard.of_name(path.name))], []
    if not path.is_dir():
        raise BadInput(f"{path}: no such file or folder; give what memguard scan wrote")
    scans: dict[tuple[int, str], dict[int, Part]] = defaultdict(dict)
    for each in sorted(path.iterdir()):
        shard = Shard.of_name(each.name)
        if shard is not None and (settings is None or shard.settings == settings):
            there = scans[shard.of, shard.settings]
            if shard.number in there:
                raise BadInput(f"{each}: is there twice, also as {there[shard.number].path.name}; remove one")
            there[shard.number] = Part(each, shard)
    if not scans:
        raise BadInput(f"{path}: holds no shards{f' of {settings}' if settings else ''}; give --out of memguard scan")
    if len(scans) > 1:
        said = ", ".join(f"{mark} ({len(found)} of {of} shards)" for (of, mark), found in scans.items())
        raise BadInput(f"{path}: holds several scans: {said}; choose one with --settings, or move the others away")
    ((of, mark), found) = next(iter(scans.items()))
    return [found[number] for number in sorted(found)], _missing(path, of, mark, found)


def _missing(folder: Path, of: int, settings: str, found: dict[int, Part]) -> list[str]:
    said = []
    for number in range(1, of + 1):
        tries = () if number in found else shards.set_apart(folder, number, of, settings)
        if number not in found:
            said.append(
                f"shard {number}/{of} is missing" + (f", {len(tries)} tries failed: {tries[-1]}" if tries else "")
            )
    stop = 0
    for number in sorted(found):
        shard = found[number].shard
        assert shard is not None
        if shard.start != stop and number - 1 in found:
            raise BadInput(f"{found[number].path}: begins at row {shard.start}, and the shard before ends at {stop}")
        stop = shard.stop
    return said


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file as they stand there."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as source:
            for batch in source.iter_batches():
                yield from batch.to_pylist()
        return
    csv.field_size_limit(LONGEST)
    with path.open(encoding="utf-8", newline="" if suffix == ".csv" else "\n") as file:
        yield from csv.DictReader(file) if suffix == ".csv" else map(json.loads, file)


def _row(values: dict[str, Any], detector: str | None) -> Row:
    findings = values["findings"]
    findings = json.loads(findings) if isinstance(findings, str) else findings
    names = [finding["detector"] for finding in findings]
    if detector is not None and detector not in names:
        raise BadInput(f"the rows have no {detector}; they have {', '.join(names)}; choose one with --detector")
    notes = values.get("notes") or ()  # one text in .csv and .parquet
    finding = findings[0 if detector is None else names.index(detector)]
    return Row(
        index=int(values["index"]),
        prompt=values["prompt"] or None,
        detector=finding["detector"],
        score=_mean(finding["scores"]),
        rms=_mean(finding["rms"]),
        below=finding.get("below"),
        count=finding.get("count"),
        verdict=finding["verdict"],
        status=finding["status"],
        error=values.get("error") or None,
        source=finding["threshold_source"],
        sigma=finding["sigma"],
        model=values["model"],
        sampler=values["sampler"],
        reference=finding["reference"],
        settings=settings_of(values) or {},
        promoted=finding["prescan"]["promoted"] if finding.get("prescan") else None,
        notes=(notes,) if isinstance(notes, str) else tuple(notes),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean over the images that have a score."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
