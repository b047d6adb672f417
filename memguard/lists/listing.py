"""A list of prompts as numbered rows: counted, named by its contents, and read in ranges."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .columns import BadInput, find_column
from .read import read_prompts, regular

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")  # WebDataset's notation for numbered files
FOOTER = 1 << 20  # bytes at the end of a .parquet file: where its row groups lie and what they hold


@dataclass(frozen=True)
class Listing:
    """A list of prompts in one or several files of one format.

    Attributes:
        parts: its files and the number of rows of each, in order.
        digest: hex digits that name what is in it, not where it lies.

    """

    parts: tuple[tuple[Path, int], ...]
    digest: str
    column: str | None = None
    encoding: str = "utf-8"

    @property
    def count(self) -> int:
        """Number of rows."""
        return sum(count for _, count in self.parts)

    def rows(self, start: int, stop: int) -> Iterator[Any]:
        """Yield the prompts of rows ``start`` up to ``stop``; files outside the range are not opened."""
        before = 0
        for path, count in self.parts:
            first, last = max(start - before, 0), min(stop - before, count)
            if first < last:
                yield from read_prompts(path, self.column, self.encoding, first, last)
            before += count


def listed(path: Path, column: str | None = None, encoding: str = "utf-8") -> Listing:
    """Count and name a list; of a .parquet file the footer is read, of others everything.

    Args:
        path: as ``read_prompts``; ``{000..099}`` in its name stands for a hundred files.
        column: of the prompts.
        encoding: of text files.

    Raises:
        BadInput: as ``read_prompts``.

    """
    named, parts = hashlib.sha256(), []
    for each in expanded(path):
        if each.suffix.lower() == ".parquet":
            count = _footer(each, column, named)
        else:
            count = 0
            for prompt in read_prompts(each, column, encoding):
                text = prompt if isinstance(prompt, str) else f"\0{type(prompt).__name__}"
                named.update(text.encode("utf-8", "backslashreplace") + b"\n")
                count += 1
        parts.append((each, count))
    return Listing(tuple(parts), named.hexdigest()[:12], column, encoding)


def expanded(path: Path) -> list[Path]:
    """Return the files that a name with braces stands for; of any other name, the one."""
    found = BRACES.search(path.name)
    if found is None or path.exists():
        return [path]
    first, last = int(found[1]), int(found[2])
    if last < first or last - first > 1_000_000:
        raise BadInput(f"{path}: {found[0]} is no range of files; give for example {{000..099}}")
    numbers = (str(number).zfill(len(found[1])) for number in range(first, last + 1))
    names = [path.name[: found.start()] + number + path.name[found.end() :] for number in numbers]
    return [each for name in names for each in expanded(path.with_name(name))]


def _footer(path: Path, column: str | None, named: Any) -> int:
    import pyarrow
    import pyarrow.parquet

    regular(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - FOOTER, 0))
            named.update(f"{size} ".encode() + file.read())
        with pyarrow.parquet.ParquetFile(path) as source:
            find_column(source.schema_arrow.names, column, str(path))
            return int(source.metadata.num_rows)
    except (OSError, ValueError, pyarrow.ArrowException):
        raise BadInput(f"{path}: not a Parquet file, or a damaged one") from None
