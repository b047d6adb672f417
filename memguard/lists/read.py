"""Prompts from a file or from stdin, one at a time.

Room: the core. May import: the standard library; pyarrow for .parquet.
"""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

COLUMNS = ("prompt", "Prompt", "caption", "Caption", "text", "TEXT")
DELIMITERS = (",", ";", "\t")
CHUNK = 1 << 20
LONGEST_CELL = 1 << 24


class BadInput(Exception):
    """Input that cannot be used: one line that names it and the remedy."""


def read_prompts(path: Path | None, column: str | None = None, encoding: str = "utf-8") -> Iterator[Any]:
    """Yield the prompts of a file.

    Blank lines of text files are left out. Cells of the other formats are handed on as they are, also those that hold
    no text, so that the results keep the rows of the list.

    Args:
        path: .txt, .jsonl, .csv (separated by comma, semicolon or tab; also .tsv) or .parquet; None is stdin, text.
        column: of the prompts; None takes the first of prompt, caption and text.
        encoding: of text files.

    Raises:
        BadInput: for a file that is not there, not of these formats, or in another encoding.

    """
    if path is None:
        yield from _text(_decoded(sys.stdin.buffer, "stdin", encoding))
        return
    if not path.is_file():
        raise BadInput(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give a file of prompts")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(path, column)
        return
    readers: dict[str, Callable[[Iterable[str]], Iterator[Any]]] = {
        ".txt": _text,
        ".jsonl": lambda lines: _jsonl(lines, path, column),
        ".csv": lambda lines: _csv(lines, path, column),
        ".tsv": lambda lines: _csv(lines, path, column),
    }
    if suffix not in readers:
        raise BadInput(f"{path}: memguard reads .txt, .jsonl, .csv and .parquet")
    with path.open("rb") as file:
        yield from readers[suffix](_decoded(file, str(path), encoding))


def _decoded(file: BinaryIO, name: str, encoding: str) -> Iterator[str]:
    """Yield lines with their ends; an error names the byte."""
    try:
        decoder = codecs.getincrementaldecoder("utf-8-sig" if _is_utf8(encoding) else encoding)()
    except LookupError:
        raise BadInput(f"--encoding {encoding}: no such encoding; for example utf-8, utf-16 or cp1252") from None
    read, rest = 0, ""
    # a terminal or a pipe hands out what it has, so that a stream of prompts is scored as it comes
    some = getattr(file, "read1", file.read)
    while True:
        chunk = some(CHUNK)
        pending = len(decoder.getstate()[0])
        try:
            rest += decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            place = read - pending + error.start
            likely = "utf-16" if read == 0 and chunk[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "cp1252"
            raise BadInput(
                f"{name}: byte {place} is not {encoding}; save the file as UTF-8, or name its encoding, for example"
                f" --encoding {likely}"
            ) from None
        read += len(chunk)
        *lines, rest = rest.split("\n")
        yield from (line + "\n" for line in lines)
        if not chunk:
            yield from [rest] if rest else []
            return


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _text(lines: Iterable[str]) -> Iterator[str]:
    return (line.strip() for line in lines if line.strip())


def _jsonl(lines: Iterable[str], path: Path, column: str | None) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadInput(f"{path}: line {number} is not JSON ({error.msg}, column {error.colno})") from None
        if isinstance(value, dict):
            value = value[_column(list(value), column, f"{path}: line {number}")]
        yield value


def _csv(lines: Iterable[str], path: Path, column: str | None) -> Iterator[Any]:
    csv.field_size_limit(LONGEST_CELL)
    source = iter(lines)
    header = next(source, None)
    if header is None:
        return
    # the right delimiter splits the header into the most cells; of equals, the first
    delimiter = max(DELIMITERS, key=lambda d: len(next(csv.reader([header], delimiter=d))))
    names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter))]
    index = names.index(_column(names, column, str(path)))
    try:
        for row in csv.reader(source, delimiter=delimiter, strict=True):
            if row:
                yield row[index] if index < len(row) else None
    except csv.Error as error:
        raise BadInput(f"{path}: not a table of cells ({error}); quote cells that hold quotes or line ends") from None


def _parquet(path: Path, column: str | None) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise BadInput(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from None
    with file:
        name = _column(file.schema_arrow.names, column, str(path))
        for batch in file.iter_batches(columns=[name]):
            yield from batch.column(0).to_pylist()


def _column(names: Sequence[str], asked: str | None, where: str) -> str:
    for name in (asked,) if asked else COLUMNS:
        if name in names:
            return name
    has = ", ".join(names[:10]) or "none"
    if asked:
        raise BadInput(f"{where}: no column {asked}; there are: {has}")
    raise BadInput(f"{where}: no column prompt, caption or text; there are: {has}; choose one with --column")
