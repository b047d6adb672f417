"""Prompts from a file or from stdin, one at a time."""

from __future__ import annotations

import codecs
import json
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from .columns import LONGEST, BadInput, find_column
from .tables import cells
from .webdataset import captions

CHUNK = 1 << 20
ENDS = re.compile(r"\r\n|\r|\n")
UNIX_ENDS = re.compile(r"\n")


def read_prompts(
    path: Path | None,
    column: str | None = None,
    encoding: str = "utf-8",
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Any]:
    """Yield the prompts of a file, or those of a range of its rows.

    Blank lines of text files are left out. Cells of the other formats are handed on as they are, also those that hold
    no text, so that the results keep the rows of the list.

    Args:
        path: .txt, .jsonl, .csv (separated by comma, semicolon or tab; also .tsv), .parquet or .tar (WebDataset); None
            is stdin, text.
        column: of the prompts; None takes the first of prompt, caption and text, however they are written.
        encoding: of text files.
        start: first row, from 0.
        stop: the row behind the last; None is the end. A .parquet file is read only where the range lies.

    Raises:
        BadInput: for a file that is not there, not of these formats, or in another encoding.

    """
    if path is not None and path.suffix.lower() == ".parquet":
        regular(path)
        yield from _parquet(path, column, start, stop)
    else:
        yield from islice(_every(path, column, encoding), start, stop)


def _every(path: Path | None, column: str | None, encoding: str) -> Iterator[Any]:
    if path is None:
        if sys.stdin is None:
            raise BadInput("stdin: is closed; give a file of prompts")
        yield from _text(_decoded(sys.stdin.buffer, "stdin", encoding))
        return
    regular(path)
    suffix = path.suffix.lower()

    def lines(universal: bool = True) -> Iterator[str]:
        try:
            file = path.open("rb")
        except OSError as error:
            raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
        with file:
            yield from _decoded(file, str(path), encoding, universal)

    if suffix == ".txt":
        yield from _text(lines())
    elif suffix == ".jsonl":
        yield from _jsonl(lines(), path, column)
    elif suffix in (".csv", ".tsv"):
        yield from cells(lambda: lines(universal=False), str(path), lambda names: find_column(names, column, str(path)))
    elif suffix == ".tar":
        yield from captions(path, column)
    else:
        raise BadInput(f"{path}: memguard reads .txt, .jsonl, .csv, .parquet and .tar")


def regular(path: Path) -> None:
    """Check that a file is there.

    Raises:
        BadInput: if it is none, a folder, or no regular file.

    """
    name = str(path) if len(str(path)) <= 200 else f"{str(path)[:60]}..."
    try:
        mode = path.stat().st_mode
    except PermissionError:
        raise BadInput(f"{name}: cannot be read (no permission)") from None
    except (OSError, ValueError):  # also a name that is too long, or that no file can have
        raise BadInput(f"{name}: no such file; give a file of prompts (a prompt itself goes in by stdin)") from None
    if not stat.S_ISREG(mode):
        raise BadInput(f"{name}: is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}; give a file of prompts")


def _decoded(file: BinaryIO, name: str, encoding: str, universal: bool = True) -> Iterator[str]:
    """Yield lines with their ends; an error names the byte.

    Args:
        file: opened for bytes.
        name: of the file, for errors.
        encoding: of its text.
        universal: whether each of CR, LF and CRLF ends a line; False takes CR for an end only if the first end is one.

    """
    decoder = _decoder(encoding)
    read, rest, ends = 0, "", None if not universal else ENDS
    # a terminal or a pipe hands out what it has, so that a stream of prompts is scored as it comes
    some = getattr(file, "read1", file.read)
    while True:
        try:
            chunk = some(CHUNK)
            pending = len(decoder.getstate()[0])
            rest += decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            # the error counts from the bytes that the decoder kept from the chunk before
            place = read - pending + error.start
            likely = "utf-16" if place == 0 and chunk[:2] in (b"\xff\xfe", b"\xfe\xff") else "cp1252"
            raise BadInput(
                f"{name}: byte {place} is not {encoding}; save the file as UTF-8, or name its encoding, for example"
                f" --encoding {likely}"
            ) from None
        except ValueError:  # UnicodeError: encodings with errors of their own
            raise BadInput(f"{name}: is not {encoding}; save the file as UTF-8, or name its encoding") from None
        except OSError as error:
            raise BadInput(f"{name}: cannot be read ({error.strerror})") from None
        read += len(chunk)
        # a CR at the end of a chunk may be half of CRLF
        whole = rest[:-1] if chunk and rest.endswith("\r") else rest
        if ends is None:
            first = ENDS.search(whole)
            ends = first and (ENDS if first[0] == "\r" else UNIX_ENDS)
        start = 0
        for end in ends.finditer(whole) if ends else ():
            _short(end.start() - start, name)
            yield whole[start : end.end()]
            start = end.end()
        rest = rest[start:]
        _short(len(rest), name)
        if not chunk:
            yield from [rest] if rest else []
            return


def _short(length: int, name: str) -> None:
    if length > LONGEST:
        raise BadInput(f"{name}: a line has more than {LONGEST:,} characters; give a list of prompts")


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    """Return what decodes a text encoding.

    Raises:
        BadInput: for a name of none, or of a transformation (hex, rot13) that Python also calls an encoding.

    """
    try:
        b"a".decode(encoding)
    except UnicodeDecodeError:
        pass  # half a character of UTF-16
    except (LookupError, ValueError):  # ValueError: undefined, names with a zero in them
        raise BadInput(f"--encoding {encoding}: no such encoding; for example utf-8, utf-16 or cp1252") from None
    utf8 = codecs.lookup(encoding).name == "utf-8"
    return codecs.getincrementaldecoder("utf-8-sig" if utf8 else encoding)()


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
        except RecursionError:
            raise BadInput(f"{path}: line {number} is nested too deeply; give prompts") from None
        except ValueError:
            raise BadInput(f"{path}: line {number} holds a number of too many digits; give prompts") from None
        if isinstance(value, dict):
            value = value[find_column(list(value), column, f"{path}: line {number}")]
        yield value


def _parquet(path: Path, column: str | None, start: int, stop: int | None) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    broken = (OSError, ValueError, pyarrow.ArrowException)
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except broken:
        raise BadInput(f"{path}: not a Parquet file, or a damaged one") from None
    with file:
        name = find_column(file.schema_arrow.names, column, str(path))
        groups, rows = _groups(file.metadata, start, stop)
        batches = file.iter_batches(columns=[name], row_groups=groups)
        while groups:
            try:
                batch = next(batches, None)
                values = [] if batch is None else batch.column(0).to_pylist()
            except broken:
                raise BadInput(f"{path}: column {name} is damaged behind row {rows}; write the file again") from None
            if batch is None:
                return
            yield from values[max(start - rows, 0) : None if stop is None else max(stop - rows, 0)]
            rows += len(values)


def _groups(metadata: Any, start: int, stop: int | None) -> tuple[list[int], int]:
    """Return the row groups of a Parquet file in which a range of rows lies, and the first row of the first of them."""
    found: list[int] = []
    first = row = 0
    for number in range(metadata.num_row_groups):
        after = row + metadata.row_group(number).num_rows
        if row < after and after > start and (stop is None or row < stop):
            first = first if found else row
            found.append(number)
        row = after
    return found, first
