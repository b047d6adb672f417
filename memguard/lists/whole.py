"""A file of rows that is there whole or not at all: written aside, then renamed."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..texts import writable
from . import files

GROUP = 1000  # rows of a .parquet file that are written at once
PART = ".part"


class Whole:
    """Rows on their way into a file, as a context; its last step, on a block without an error, is the renaming.

    Args:
        path: .jsonl, .csv or .parquet; a file that is there is replaced at the end.
        columns: name -> kind of .csv and .parquet, and all that a row of .jsonl has; None leaves .jsonl rows as they
            are.

    Attributes:
        count: rows that were added.

    Raises:
        BadInput: if it cannot be written, from every method; then nothing is left behind.

    """

    def __init__(self, path: Path, columns: Mapping[str, str] | None = None) -> None:
        self.path, self.columns = path, columns
        self.aside = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}{PART}")
        self.count = 0
        self._group: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._packer: Any = None

    def __enter__(self) -> Whole:
        try:
            self._file = self.aside.open("wb")
            if self.path.suffix == ".csv":
                self._write(_cells(dict.fromkeys(self.columns or ()), header=True))
        except (OSError, ValueError) as error:
            self._drop()
            raise self._unwritable(error) from None
        return self

    def add(self, row: Mapping[str, Any]) -> None:
        """Take the next row."""
        cells = dict(row) if self.columns is None else {name: row[name] for name in self.columns}
        try:
            if self.path.suffix == ".parquet":
                # halves of characters, which no encoding can write
                self._group.append({n: writable(c) if isinstance(c, str) else c for n, c in cells.items()})
                if len(self._group) == GROUP:
                    self._flush()
            elif self.path.suffix == ".csv":
                self._write(_cells(cells))
            else:
                self._write(json.dumps(cells, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as error:
            raise self._unwritable(error) from None
        self.count += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        assert self._file is not None
        if kind is not None:
            self._drop()
            return
        try:
            if self.path.suffix == ".parquet":
                self._flush()
                self._packer.close()
            self._file.flush()
            os.fsync(self._file.fileno())  # a name must not point to bytes that a power cut takes away
            self._file.close()
            self.aside.replace(self.path)
        except OSError as error:
            self._drop()
            raise self._unwritable(error) from None

    def _write(self, text: str) -> None:
        assert self._file is not None
        self._file.write(text.encode("utf-8", "backslashreplace"))

    def _flush(self) -> None:
        import pyarrow
        import pyarrow.parquet

        if self._packer is None:
            schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in (self.columns or {}).items()])
            self._packer = pyarrow.parquet.ParquetWriter(self._file, schema)
        if self._group:
            self._packer.write_table(pyarrow.Table.from_pylist(self._group, self._packer.schema))
            self._group = []

    def _drop(self) -> None:
        """Leave nothing behind."""
        for each in (self._packer, self._file):
            try:
                if each is not None:
                    each.close()  # writes what is left, which a full disk refuses again
            except OSError:
                pass
        self.aside.unlink(missing_ok=True)

    def _unwritable(self, error: Exception) -> Exception:
        return files.unwritable(self.path, error if isinstance(error, OSError) else OSError(0, "no name for a file"))


def _cells(row: Mapping[str, Any], header: bool = False) -> str:
    line = io.StringIO()
    # with this line end, cells that hold a CR are quoted, too
    values = row if header else ["" if value is None else value for value in row.values()]
    csv.writer(line, lineterminator="\r\n").writerow(values)
    return line.getvalue()[:-2] + "\n"
