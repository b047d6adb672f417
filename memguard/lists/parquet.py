"""Results in .parquet, by way of a journal, because a Parquet file cannot be read before its last byte is written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet

from . import files
from .columns import BadInput
from .rows import FLAT, LATER
from .write import Results

ROW_GROUP = 1000
BROKEN = (OSError, ValueError, pyarrow.ArrowException)


class ParquetResults(Results):
    """The same for .parquet, by way of a journal of flat rows beside it."""

    def __init__(self, path: Path, fresh: bool = False) -> None:
        self.target = path
        self._there = path.exists()
        if self._there:
            self._recognise()
        super().__init__(path.with_name(path.name + ".jsonl"), reports=False, fresh=fresh)

    def _begin(self, file: BinaryIO) -> None:
        if self.target.exists() != self._there:
            raise BadInput(f"{self.target}: somebody else has just made it; choose another name")
        super()._begin(file)
        if self._new and self._there and not self.fresh:
            for row in self._packed():
                self._write(json.dumps(row, ensure_ascii=False) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        super().__exit__(kind, *rest)
        if self.path.exists():
            self._pack()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the journal, or of the Parquet file where there is none."""
        return self._packed() if self._new and self._there and not self._end else super().rows()

    def _packed(self) -> Iterator[dict[str, Any]]:
        try:
            with pyarrow.parquet.ParquetFile(self.target) as source:
                for batch in source.iter_batches():
                    yield from batch.to_pylist()
        except BROKEN:
            raise BadInput(f"{self.target}: is a damaged Parquet file; choose another name") from None

    def _recognise(self) -> None:
        if not self.target.is_file():
            raise BadInput(f"{self.target}: is a folder or no regular file; choose another name")
        try:
            with pyarrow.parquet.ParquetFile(self.target) as source:
                names = source.schema_arrow.names
        except BROKEN:
            names = []
        if names not in ([*FLAT], [name for name in FLAT if name not in LATER]):
            raise BadInput(f"{self.target}: was not written by memguard; it is left as it is, choose another name")

    def _pack(self) -> None:
        schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in FLAT.items()])
        part = self.target.with_name(f"{self.target.name}.{os.getpid()}.part")
        try:
            with part.open("xb") as file, pyarrow.parquet.ParquetWriter(file, schema) as writer:
                rows = self.rows()
                while group := list(islice(rows, ROW_GROUP)):
                    writer.write_table(pyarrow.Table.from_pylist(group, schema))
            part.replace(self.target)
        except FileExistsError:
            raise BadInput(f"{part}: is there already; move it away, and --resume continues") from None
        except BROKEN as error:
            part.unlink(missing_ok=True)
            said = files.unwritable(self.target, error if isinstance(error, OSError) else OSError())
            raise BadInput(f"{said}; its rows are in {self.path}, and --resume continues") from None
        self.path.unlink()
