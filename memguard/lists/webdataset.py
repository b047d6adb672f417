"""Captions of a WebDataset: tar files in which the members of one sample have a name in common up to its first dot."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .columns import LONGEST, BadInput, find_column

KINDS = ("txt", "json")  # of members that hold captions, the better first


def captions(path: Path, column: str | None) -> Iterator[Any]:
    """Yield the caption of each sample, in the order of the file; None for a sample without one.

    A caption is the sample's .txt, else the column of its .json; with ``column``, the .json first. What cannot be read
    as either is handed on as bytes, so that the results keep the rows of the list.

    Args:
        path: of a .tar file, also a compressed one.
        column: of the .json members; None takes the first of prompt, caption and text.

    Raises:
        BadInput: for a damaged file, or a .json without the column.

    """
    kinds = KINDS[::-1] if column else KINDS
    samples = 0
    key: tuple[str, str] | None = None
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, dot, kind = base.partition(".")
                if not member.isfile() or not dot or not stem:
                    continue
                if (folder, stem) != key:
                    if key is not None:
                        yield _caption(found, kinds, column, f"{path}: sample {samples}")
                    key, found = (folder, stem), {}
                    samples += 1
                file = tar.extractfile(member) if kind.lower() in KINDS and member.size <= LONGEST else None
                if file is not None:
                    found[kind.lower()] = file.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        behind = f" behind sample {samples}" if samples else ""
        said = error.strerror if isinstance(error, OSError) and error.strerror else "damaged, or no tar file"
        raise BadInput(f"{path}: cannot be read{behind} ({said}); copy it again") from None
    if key is not None:
        yield _caption(found, kinds, column, f"{path}: sample {samples}")


def _caption(found: dict[str, bytes], kinds: tuple[str, ...], column: str | None, where: str) -> Any:
    kind = next((kind for kind in kinds if kind in found), None)
    if kind is None:
        return None
    data = found[kind]
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text) if kind == "json" else text.strip()
    except (ValueError, RecursionError):  # also UnicodeDecodeError, JSONDecodeError
        return data
    return value[find_column(list(value), column, where)] if isinstance(value, dict) else value
