"""``memguard copies``: which pictures are copies of pictures in a folder."""

from __future__ import annotations

import argparse
import csv
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

from ..lists import BadInput, files
from ..table import COPIES
from ..texts import json_line, shown
from ..troubles import Refused
from . import common

COLUMNS = ("picture", "nearest", "similarity", "copy", "error")
SCHEMA = "memguard.copies/1"
AT_ONCE = 16
TOLD = 5  # broken references that are named


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "copies",
        help="say which pictures are copies of pictures in a folder",
        description="Find the nearest picture of a folder for each picture: also where it was cropped, mirrored, "
        "resized, recompressed, recoloured, framed or written on. An index of the folder is kept up to date.",
        epilog="A picture that cannot be read is one line, and the others go on; the exit code is 2 at the end, unless"
        " --fail-on makes it 1.",
    )
    parser.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE", help="files or folders")
    parser.add_argument("--references", type=Path, required=True, metavar="FOLDER", help="with what they are compared")
    own = COPIES["threshold"]
    said = f"{common.words(own)} (default {own.default}; SSCD: .75)"
    common.add(parser, "threshold", own, default=None, metavar="T", help=said)
    said = "exit code 1 if a similarity is at least this"
    common.add(parser, "fail_on", own, default=None, metavar="T", help=said)
    parser.add_argument("--top", type=int, default=1, metavar="N", help="references shown per picture (default 1)")
    parser.add_argument("--out", type=Path, metavar="FILE", help=".jsonl or .csv; one written before is replaced")
    parser.add_argument("--json", action="store_true", help="rows as JSON lines; with --out one summary")
    parser.add_argument("--index", type=Path, metavar="FILE", help="default: one per folder in ~/.memguard/copies")
    group = parser.add_argument_group("embedding, instead of the match at low resolution")
    group.add_argument("--embedding", type=Path, metavar="MODEL", help="a TorchScript file (SSCD) or a folder (DINO)")
    common.add(group, "embedding_size", COPIES["embedding_size"], metavar="PX")
    group.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, mps")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search; return 0, 1 for a similarity at --fail-on, or else 2 if a picture has no result."""
    _check(args)
    try:
        return _run(args)
    except Refused as error:
        raise BadInput(str(error)) from None


def _check(args: argparse.Namespace) -> None:
    if not 1 <= args.top <= 1000:
        raise BadInput(f"--top: {args.top} is not between 1 and 1000")
    if args.out is not None:
        if args.out.suffix.lower() not in (".jsonl", ".csv"):
            raise BadInput(f"{args.out}: memguard copies writes .jsonl and .csv")
        files.target(args.out, _is_ours, args.pictures)


def _run(args: argparse.Namespace) -> int:
    from ..copies import THRESHOLD
    from ..copies.index import Index
    from ..copies.reading import files_of
    from ..copies.signatures import Signatures, Thumbnails

    pictures = [path for each in args.pictures for path in (files_of(each) if each.is_dir() else [each])]
    if not pictures:
        raise BadInput(f"{args.pictures[0]}: holds no pictures")
    kind: Signatures = Thumbnails()
    threshold = THRESHOLD
    if args.embedding is not None:
        kind, threshold = _embedding(args)
    threshold = threshold if args.threshold is None else args.threshold
    index = Index(args.references, kind, args.index)
    update = index.update(lambda paths: _progress(list(paths), " references"))
    _tell(update)
    references = index.open()
    rows: list[dict[str, Any]] = []
    for row in _rows(_progress(pictures, " pictures"), index, references, kind, args.top):
        row["copy"] = None if row["error"] else row["similarity"] >= threshold
        rows.append(row)
        if args.out is None:
            print(_json(row) if args.json else line(row), flush=True)
        if row["error"]:
            print(shown(f"memguard copies: {row['error']}"), file=sys.stderr)
    return _conclude(args, rows, threshold, len(index.names))


def _embedding(args: argparse.Namespace) -> tuple[Any, float]:
    from ..copies.embedding import SSCD_THRESHOLD, Embedding
    from . import models

    # TorchScript needs no library that gives advice, and loading one takes seconds
    with models.quiet() if args.embedding.is_dir() else nullcontext():
        return Embedding(args.embedding, args.embedding_size, args.device), SSCD_THRESHOLD


def _progress(paths: list[Path], what: str) -> Iterable[Path]:
    """Return the paths behind a progress bar where there is a terminal, and tqdm, which this command does not need."""
    try:
        return common.progress(paths, len(paths), what) if sys.stderr.isatty() else paths
    except ModuleNotFoundError:
        return paths


def _tell(update: Any) -> None:
    for said in update.broken[:TOLD]:
        print(shown(f"memguard copies: {said}"), file=sys.stderr)
    if len(update.broken) > TOLD:
        print(f"memguard copies: {len(update.broken) - TOLD} more references cannot be read", file=sys.stderr)
    if update.kept != "ok":
        print(shown(f"memguard copies: the index is not kept: {update.kept}"), file=sys.stderr)


def _rows(pictures: Iterable[Path], index: Any, references: Any, kind: Any, top: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each picture, in their order."""
    from ..copies.signatures import signature

    places = {os.path.realpath(index.folder / name): place for place, name in enumerate(index.names)}
    left = iter(pictures)
    while part := list(islice(left, AT_ONCE)):
        made: dict[Path, Any] = {}
        errors: dict[Path, str] = {}
        for path in part:
            try:
                made[path] = signature(kind, path)
            except Refused as error:
                errors[path] = str(error)
        found = {}
        if made:
            import torch

            barred = [places.get(os.path.realpath(path)) for path in made]  # a picture is no copy of itself
            similarities, nearest = references.nearest(torch.stack(list(made.values())), top, barred)
            found = dict(zip(made, zip(similarities.tolist(), nearest.tolist(), strict=True), strict=True))
        for path in part:
            yield _row(path, index, *found.get(path, ([], [])), errors.get(path, ""))


def _row(path: Path, index: Any, similarities: list[float], places: list[int], error: str) -> dict[str, Any]:
    pairs = [(value, index.names[place]) for value, place in zip(similarities, places, strict=True)]
    pairs = [(round(value, 4), name) for value, name in pairs if math.isfinite(value)]
    row: dict[str, Any] = {
        "picture": str(path),
        "nearest": None,
        "similarity": None,
        "copy": None,
        "error": error or None,
    }
    if not pairs and not error:
        row["error"] = f"{path}: the folder holds no other picture"
    if pairs:
        row["similarity"], row["nearest"] = pairs[0]
        row["further"] = [{"nearest": name, "similarity": value} for value, name in pairs[1:]]
    return row


def _conclude(args: argparse.Namespace, rows: list[dict[str, Any]], threshold: float, references: int) -> int:
    compared = [row for row in rows if not row["error"]]
    if not compared:
        raise BadInput("no picture could be compared")
    copies = sum(row["copy"] for row in compared)
    if args.out is not None:
        _write(args.out, rows)
    if args.json and args.out is not None:
        counts = {"pictures": len(rows), "copies": copies, "without_result": len(rows) - len(compared)}
        common.print_json({"out": str(args.out), **counts, "references": references, "threshold": threshold})
    elif not args.json:
        said = f"{copies} of {len(compared)} pictures are copies of one of {references} references (similarity from"
        where = "" if args.out is None else f"{args.out}: "
        print(shown(f"{where}{said} {threshold:g})"))
    if len(compared) < len(rows):
        print(f"memguard copies: {len(rows) - len(compared)} without a result", file=sys.stderr)
    if args.fail_on is not None and any(row["similarity"] >= args.fail_on for row in compared):
        return 1
    return 2 if len(compared) < len(rows) else 0  # what could not be compared is not passed


def line(row: dict[str, Any]) -> str:
    """Return one row of the table on stdout: verdict, similarity, picture, nearest reference."""
    if row["error"]:
        return f"{'no result':<10}{'':>7}  {shown(row['picture'])}"
    word = "copy" if row["copy"] else "-"
    lines = [f"{word:<10}{row['similarity']:>7.3f}  {shown(row['picture'])}  {shown(row['nearest'])}"]
    lines += [f"{'':<10}{each['similarity']:>7.3f}  {'':>4}{shown(each['nearest'])}" for each in row["further"]]
    return "\n".join(lines)


def _json(row: dict[str, Any]) -> str:
    text = json.dumps({"schema": SCHEMA, **row}, ensure_ascii=False, allow_nan=False)
    return json_line(text.encode("utf-8", "backslashreplace").decode())


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(200)
    return head.startswith((f'{{"schema": "{SCHEMA}"'.encode(), (",".join(COLUMNS) + "\n").encode()))


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows aside and put the file in its place."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("x", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            if path.suffix.lower() == ".csv":
                file.write(",".join(COLUMNS) + "\n")
                file.writelines(_csv_line(row) for row in rows)
            else:
                file.writelines(_json(row) + "\n" for row in rows)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise files.unwritable(path, error) from None


def _csv_line(row: dict[str, Any]) -> str:
    text = io.StringIO()
    cells = ["" if row[name] is None else row[name] for name in COLUMNS]
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
