"""Which file of results a path means, and whether it may be written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from . import files
from .columns import BadInput
from .write import Results


def open_results(path: Path, resume: bool, force: bool = False, inputs: Iterable[Path | None] = ()) -> Results:
    """Return the results file for ``path``; nothing is written yet.

    Args:
        path: .jsonl, .csv or .parquet.
        resume: whether a file that is there is continued.
        force: whether it is replaced.
        inputs: files that are read meanwhile.

    Raises:
        BadInput: for another format, a missing folder, a file that is read, a file of something else, or one that is
            there and neither continued nor replaced.

    """
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv", ".parquet"):
        folder = "is a folder; " if os.path.isdir(path) else ""
        raise BadInput(f"{path}: {folder}memguard writes .jsonl, .csv and .parquet")
    journal = path.with_name(path.name + ".jsonl")
    try:
        os.fsencode(path)
        if not path.absolute().parent.is_dir():
            raise BadInput(f"{path}: no folder {path.parent}; make it first")
        for old in (path, journal) if suffix == ".parquet" else (path,):
            files.no_input(old, inputs)
            if old.exists() and not (resume or force):
                raise BadInput(f"{old}: is there already; continue it with --resume or replace it with --force")
    except OSError as error:  # a name that is too long
        raise files.unwritable(path, error) from None
    except UnicodeEncodeError:
        raise BadInput(f"{path}: is no name for a file; choose another") from None
    if suffix == ".parquet":
        from .parquet import ParquetResults  # needs pyarrow: said before an hour of scoring, not after

        return ParquetResults(path, force)
    return Results(path, fresh=force)
