"""Results in .parquet, by way of a journal, because a Parquet file cannot be read before its last byte is written.

Room: the core. May import: pyarrow and the standard library.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet

from .read import BadInput
from .write import FLAT, Results

ROW_GROUP = 1000


class ParquetResults(Results):
    """The same for .parquet, by way of a journal of flat rows beside it."""

    def __init__(self, path: Path, fresh: bool = False) -> None:
        super().__init__(path.with_name(path.name + ".jsonl"), reports=False, fresh=fresh)
        self.target = path
        if path.exists() and not self.path.exists() and not fresh:
            self._unpack()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._pack()

    def _unpack(self) -> None:
        part = self.path.with_suffix(".part")
        try:
            with pyarrow.parquet.ParquetFile(self.target) as source, part.open("w", encoding="utf-8") as journal:
                for batch in source.iter_batches():
                    journal.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
        except (OSError, pyarrow.ArrowException) as error:
            raise BadInput(f"{self.target}: not a Parquet file ({str(error).splitlines()[0]})") from None
        part.replace(self.path)

    def _pack(self) -> None:
        schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in FLAT.items()])
        part = self.target.with_name(self.target.name + ".part")
        with pyarrow.parquet.ParquetWriter(part, schema) as writer:
            rows = self.rows()
            while group := list(islice(rows, ROW_GROUP)):
                writer.write_table(pyarrow.Table.from_pylist(group, schema))
        part.replace(self.target)
        self.path.unlink()
