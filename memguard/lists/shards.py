"""Shards: a list of prompts cut into row ranges, each of which becomes one file of its own.

Who scores which rows follows from the number of the shard alone, and what is done from the names of the files, so
that shards need nothing in common but a folder. A file's name says the shard, its rows and the settings.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import files
from .columns import BadInput
from .whole import PART

NAME = re.compile(r"shard-(\d{5,})-of-(\d{5,})-rows-(\d+)-(\d+)-([0-9a-f]{12})\.(?:jsonl|parquet)")
TRIES = ".tries"
SILENT = "it ended without a word: killed, or out of memory"


class ShardFailed(BadInput):
    """A shard whose rows could not be scored; it counts as a try."""


@dataclass(frozen=True)
class Shard:
    """One range of rows.

    Attributes:
        number: of the shard, from 1.
        of: number of shards.
        start: first row, from 0.
        stop: the row behind the last.
        settings: hex digits that name the list and what its rows are scored with.

    """

    number: int
    of: int
    start: int
    stop: int
    settings: str

    @property
    def stem(self) -> str:
        """What its file, its tries and its unfinished file have in common."""
        return f"shard-{self.number:05}-of-{self.of:05}"

    def name(self, suffix: str) -> str:
        """Return the name of its file."""
        return f"{self.stem}-rows-{self.start}-{self.stop}-{self.settings}.{suffix}"

    @classmethod
    def of_name(cls, name: str) -> Shard | None:
        """Return the shard that a file's name says, or None for another file."""
        found = NAME.fullmatch(name)
        if found is None:
            return None
        number, of, start, stop = map(int, found.groups()[:4])
        return cls(number, of, start, stop, found[5])


def parse(text: str) -> tuple[int, int]:
    """Return number and count of "I/N", from 1/N to N/N.

    Raises:
        BadInput: for another text.

    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= of:
        raise BadInput(f"--shard {text}: is no I/N from 1/N to N/N, for example 3/64")
    return number, of


def bounds(count: int, number: int, of: int, grain: int) -> tuple[int, int]:
    """Return the first row of a shard and the row behind its last.

    Args:
        count: rows of the list.
        number: of the shard, from 1.
        of: number of shards.
        grain: rows that stay together: shards begin at its multiples, so that the same rows share a forward as when
            the list is scored at once.

    """
    blocks = -(-count // grain)
    first, last = blocks * (number - 1) // of, blocks * number // of
    return min(first * grain, count), min(last * grain, count)


def there(folder: Path, number: int, of: int, settings: str) -> Path | None:
    """Return the file of a shard, or None while it is not done."""
    stem = Shard(number, of, 0, 0, settings).stem
    return next(iter(sorted(p for p in folder.glob(f"{stem}-rows-*-{settings}.*") if NAME.fullmatch(p.name))), None)


@contextmanager
def attempt(folder: Path, shard: Shard, most: int, ready: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Keep a shard for this process, and count the tries that came to nothing.

    A try counts when its process is killed, and when it raises another error than BadInput or KeyboardInterrupt: a full
    disk or a person's Ctrl-C says nothing of the shard.

    Args:
        folder: of the shards.
        shard: to be scored in the block.
        most: tries after which a shard is set apart.
        ready: is called before the block, when the shard is this process's; what it raises is no try.

    Raises:
        BadInput: if another process has the shard, or it has failed too often.

    """
    path = folder / f"{shard.stem}-{shard.settings}{TRIES}"
    try:
        opened = path.open("a+b", buffering=0)
    except OSError as error:
        raise files.unwritable(path, error) from None
    try:
        file = files.locked(opened, path)
    except BadInput:
        raise BadInput(f"shard {shard.number}/{shard.of}: another process scores it now") from None
    with file:
        tries = _tries(path)
        if len(tries) >= most:
            raise BadInput(
                f"shard {shard.number}/{shard.of} is set apart after {len(tries)} tries, the last because {tries[-1]};"
                f" --force tries it again"
            )
        # of a process that was killed: the lock says that it has ended
        for left in folder.glob(f".{shard.stem}-rows-*-{shard.settings}.*{PART}"):
            left.unlink(missing_ok=True)
        end = os.fstat(file.fileno()).st_size
        try:
            ready()
        except BaseException:
            _untried(path, end)
            raise
        try:
            file.write(_line({"started": time.strftime("%Y-%m-%dT%H:%M:%S"), "host": platform.node()}))
        except OSError as error:
            with suppress(OSError):
                file.truncate(end)
            raise files.unwritable(path, error) from None
        try:
            yield
        except (BadInput, KeyboardInterrupt) as error:
            if isinstance(error, ShardFailed):
                _note(file, error)
                said = f"shard {shard.number}/{shard.of}: try {len(tries) + 1} of {most} failed, {error}"
                raise ShardFailed(said) from None
            file.truncate(end)
            _untried(path, end)
            raise
        except BaseException as error:
            _note(file, error)
            raise
        file.truncate(0)
        _untried(path, 0)


def _untried(path: Path, end: int) -> None:
    """Remove a file of tries that holds none."""
    if end == 0:
        with suppress(OSError):  # Windows lets nobody remove what is open
            path.unlink(missing_ok=True)


def set_apart(folder: Path, number: int, of: int, settings: str) -> tuple[str, ...]:
    """Return why the tries of a shard failed, one reason each; none for a shard that was never tried, or is done."""
    return _tries(folder / f"{Shard(number, of, 0, 0, settings).stem}-{settings}{TRIES}")


def forget(folder: Path, number: int, of: int, settings: str) -> None:
    """Begin the count of a shard's tries again."""
    (folder / f"{Shard(number, of, 0, 0, settings).stem}-{settings}{TRIES}").unlink(missing_ok=True)


def _tries(path: Path) -> tuple[str, ...]:
    found: list[str] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        lines = []
    for line in lines:
        with suppress(ValueError):  # a line that a full disk cut
            values = json.loads(line)
            if "started" in values:
                found.append(SILENT)
            elif found:
                found[-1] = str(values.get("failed", SILENT))
    return tuple(found)


def _note(file: Any, error: BaseException) -> None:
    said = str(error) if isinstance(error, BadInput) else f"{type(error).__name__}: {error}"
    with suppress(OSError):
        file.write(_line({"failed": (said.strip() or type(error).__name__).splitlines()[0]}))


def _line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values) + "\n").encode()
