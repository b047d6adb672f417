"""The table that ``memguard merge`` writes, and how its files are known."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .columns import BadInput

COLUMNS = {
    "index": "int64",
    "prompt": "string",
    "score": "float64",
    "rms": "float64",
    "p_value": "float64",
    "q_value": "float64",
    "found": "bool_",
    "verdict": "string",
    "status": "string",
    "error": "string",
}


def check(path: Path) -> None:
    """Check that a table can have this name, before the work.

    Raises:
        BadInput: if not.

    """
    if path.suffix not in (".jsonl", ".csv", ".parquet"):
        folder = "is a folder; " if os.path.isdir(path) else ""
        raise BadInput(f"{path}: {folder}memguard writes .jsonl, .csv and .parquet")
    if path.suffix == ".parquet":
        import pyarrow  # noqa: F401 - said now, not after the reading


def is_merged(path: Path) -> bool:
    """Whether a file is such a table, by its beginning."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path) as source:
                found: bool = source.schema_arrow.names == [*COLUMNS]
                return found
        except (OSError, ValueError, pyarrow.ArrowException):
            return False
    with path.open("rb") as file:
        first = file.readline(1 << 20)
    if path.suffix == ".csv":
        return first.decode("utf-8", "replace").strip() == ",".join(COLUMNS)
    try:
        return not first or [*json.loads(first)] == [*COLUMNS]
    except (ValueError, RecursionError, TypeError):
        return False
