"""Results as they come: every row is on disk before the next prompt is scored, and a broken file can be continued.

.jsonl holds whole reports; .csv and .parquet hold one flat row per prompt. Rows of a .parquet file go to
``NAME.parquet.jsonl`` first and become the Parquet file at the end, also after Ctrl-C; after a crash the next
``--resume`` finds them there. Each row keeps the settings that it was made with. Whose a file is, is known before its
first byte is changed: what memguard did not write is refused.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from . import files
from .columns import LONGEST, BadInput
from .rows import FLAT, LATER, NONE_KEPT, difference, flat, ours, settings_of, whole

if TYPE_CHECKING:
    from ..records import Report

HEADER = ",".join(FLAT)
LIKENESS = 6  # bytes that say nothing about who wrote them
OLD_HEADER = ",".join(name for name in FLAT if name not in LATER)


class Results:
    """A file of results that grows row by row.

    A file that is there is opened and locked at once, and changed only inside the ``with`` block; one that is not there
    is created when the block begins.

    Args:
        path: of the file that grows: .jsonl or .csv.
        reports: whether .jsonl rows are whole reports or flat ones.
        fresh: whether what is there is replaced, when the block begins.

    Attributes:
        count: rows in the file.
        settings: what rows are made with; to be set before the block.

    Raises:
        BadInput: if a file is there that memguard did not write, or that somebody else is writing.

    """

    def __init__(self, path: Path, reports: bool = True, fresh: bool = False) -> None:
        self.path, self.reports, self.fresh = path, reports, fresh
        self.count = 0
        self.settings: Mapping[str, Any] = {}
        self._kept: dict[str, Any] | None = None
        self._file: BinaryIO | None = files.held(path) if path.exists() else None
        self._new = self._file is None
        self._end = 0  # of the last whole row
        if self._file is not None:
            try:
                self._end = self._recognised()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Results:
        if self._file is None:
            self._file = files.created(self.path)
        try:
            self._begin(self._file)
        except BaseException:
            self.close()
            if self._new:
                self.path.unlink()
            raise
        return self

    def _begin(self, file: BinaryIO) -> None:
        """Cut off what is to be replaced, and write what stands above the rows."""
        self._end = 0 if self.fresh else self._end
        try:
            file.truncate(self._end)
            file.seek(self._end)
        except OSError as error:
            raise files.unwritable(self.path, error) from None
        if self._csv and self._end == 0:
            self._write(HEADER + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is not None and self._new and self.count == 0:
            self.path.unlink(missing_ok=True)  # nothing came of it

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _csv(self) -> bool:
        return self.path.suffix.lower() == ".csv"

    def _foreign(self, number: int) -> BadInput:
        what = f"row {number}" if number else "its header"
        return BadInput(f"{self.path}: {what} was not written by memguard; it is left as it is, choose another name")

    def _recognised(self) -> int:
        """Return where the last whole row ends; raise BadInput if the file is not memguard's by its beginning."""
        end, count, first, tail = _shape(self.path, self._csv)
        if self._csv:
            head = (first or tail).decode("utf-8", "replace").rstrip("\r\n")
            cut = not first and HEADER.startswith(head) and (not head or len(head) > LIKENESS)
            if head not in (HEADER, OLD_HEADER) and not cut:
                raise self._foreign(0)
            count -= 1
            if head == OLD_HEADER and count == 0:
                return 0  # no row is lost under a new header
        elif first:
            try:
                row = json.loads(first)
            except (ValueError, RecursionError):
                row = None
            if not ours(row, 0):
                raise self._foreign(1)
        # a row that was not written to its end begins as rows do; where it is the only one, by more than a few bytes
        begin = (
            f"{count}," if self._csv else f'{{"index": {count}, "{"schema" if self.reports else "prompt"}": '
        ).encode()
        like = tail.startswith(begin) or (begin.startswith(tail) and (first or len(tail) > LIKENESS))
        if tail and (first or not self._csv) and not like:
            raise self._foreign(count + 1)
        return end

    def done(self) -> Iterator[Any]:
        """Yield the prompts of the rows that are there; a last row that was not written to its end is none.

        Raises:
            BadInput: if one of them is not of memguard, or does not keep its settings.

        """
        for row in self.rows():
            if not ours(row, self.count):
                raise self._foreign(self.count + 1)
            kept = settings_of(row)
            if kept is None:
                raise BadInput(f"{self.path}: {NONE_KEPT}")
            self._kept = self._kept or kept
            self.count += 1
            yield row["prompt"]

    def agree(self, settings: Mapping[str, Any]) -> None:
        """Check that the rows that are there were made with these settings, as far as they are given.

        Raises:
            BadInput: that names the first that differs.

        """
        differs = difference(self._kept, settings) if self._kept is not None else ""
        if differs:
            raise BadInput(f"{self.path}: {differs}; --resume needs the same settings")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the whole rows of the file as they stand there."""
        if not self._end:
            return
        number = 0
        try:
            with self.path.open(encoding="utf-8", newline="" if self._csv else "\n") as file:
                lines = _until(file, self._end)
                csv.field_size_limit(LONGEST)
                for row in csv.DictReader(lines) if self._csv else map(json.loads, lines):
                    number += 1
                    yield row
        except (ValueError, RecursionError, csv.Error):  # also UnicodeDecodeError, JSONDecodeError
            raise self._foreign(number + 1) from None

    def add(self, report: Report, **more: Any) -> None:
        """Append a report and hand it to the operating system.

        Args:
            report: of the next prompt.
            more: what a .jsonl row holds besides.

        Raises:
            BadInput: if it cannot be written.

        """
        if self._csv or not self.reports:
            row = flat(report, self.count, self.settings)
            text = _csv_line(row) if self._csv else json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        else:
            values = whole(report, self.count, self.settings, **more)
            text = json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"
        self._write(text)
        self.count += 1

    def _write(self, text: str) -> None:
        assert self._file is not None
        rest = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            self._end = self._file.tell()
        except OSError as error:
            goes_on = f"; it holds {self.count} prompts, and --resume continues" if self.count else ""
            raise BadInput(f"{files.unwritable(self.path, error)}{goes_on}") from None


def _csv_line(row: Mapping[str, Any]) -> str:
    line = io.StringIO()
    # with this line end, cells that hold a CR are quoted, too
    csv.writer(line, lineterminator="\r\n").writerow(["" if value is None else value for value in row.values()])
    return line.getvalue()[:-2] + "\n"


def _shape(path: Path, quotes: bool) -> tuple[int, int, bytes, bytes]:
    """Return where the last whole row ends, the number of whole rows, the first of them, and what is behind the last.

    Args:
        path: of the file.
        quotes: whether line ends inside quotes do not end a row.

    """
    end = count = 0
    first = tail = b""
    inside = False
    with path.open("rb") as file:
        while line := file.readline(LONGEST):
            tail = (tail + line)[:LONGEST]
            if quotes and line.count(b'"') % 2:
                inside = not inside
            if line.endswith(b"\n") and not inside:
                end, count = file.tell(), count + 1
                first, tail = first or tail, b""
    return end, count, first, tail


def _until(file: Any, end: int) -> Iterator[str]:
    """Yield the lines of a text file up to a byte, the end of a line."""
    position = 0
    for line in file:
        position += len(line.encode())
        if position > end:
            return
        yield line
