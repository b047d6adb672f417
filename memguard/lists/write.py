"""Results as they come: every row is on disk before the next prompt is scored, and a broken file can be continued.

.jsonl holds whole reports; .csv and .parquet hold one flat row per prompt. Rows of a .parquet file go to
``NAME.parquet.jsonl`` first and become the Parquet file at the end, also after Ctrl-C; after a crash the next
``--resume`` finds them there.

Room: the core. May import: memguard.records, the standard library; lists.parquet where that is asked for.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..records import Report
from .read import LONGEST_CELL, BadInput

FLAT = {
    "index": "int64",
    "prompt": "string",
    "verdict": "string",
    "detector": "string",
    "score": "float64",
    "rms": "float64",
    "zscore": "float64",
    "percentile": "float64",
    "threshold": "float64",
    "threshold_source": "string",
    "status": "string",
    "reference": "string",
    "sigma": "float64",
    "seed": "int64",
    "model": "string",
    "sampler": "string",
    "steps": "int64",
    "cfg": "float64",
    "width": "int64",
    "height": "int64",
    "seconds": "float64",
    "error": "string",
    "findings": "string",
}
# what rows of one file must agree in
SETTINGS = ("model", "seed", "sampler", "steps", "cfg", "width", "height", "reference", "images", "scored")


def flat(report: Report, index: int) -> dict[str, Any]:
    """Return a report as one row of plain cells; its first finding, and all of them as JSON."""
    values = report.to_dict()
    finding = values["findings"][0]
    means = {"score": report.findings[0].score, "rms": report.findings[0].mean_rms, "index": index}
    row = values | {k: v for k, v in finding.items() if k in FLAT} | means
    row |= {"verdict": report.verdict, "seed": report.seeds[0] if report.seeds else None}
    row["findings"] = json.dumps(values["findings"], ensure_ascii=False)
    return {name: row[name] for name in FLAT}


def settings(row: dict[str, Any]) -> dict[str, str] | None:
    """Return what rows of one file must agree in, as text; None for a row without a score."""
    findings = row["findings"]
    finding = (json.loads(findings) if isinstance(findings, str) else findings)[0]
    if not finding["scores"]:
        return None
    seed = row["seed"] if "seed" in row else (row["seeds"] or [None])[0]
    numbers = row | {"seed": seed, "reference": finding["reference"]}
    numbers |= {"images": len(finding["scores"]), "scored": len(finding["per_step"])}
    # CSV holds text only: 7.5 and "7.5" must compare equal, and 7 and "7.0"
    return {name: _comparable(numbers[name]) for name in SETTINGS}


def _comparable(value: Any) -> str:
    try:
        return f"{float(value):g}"
    except (TypeError, ValueError):
        return str(value or "")


class Results:
    """A file of results that grows row by row.

    Args:
        path: of the file that grows: .jsonl or .csv.
        reports: whether .jsonl rows are whole reports or flat ones.
        fresh: whether what is there is replaced, when the first row is about to be written.

    Attributes:
        count: rows in the file.

    """

    def __init__(self, path: Path, reports: bool = True, fresh: bool = False) -> None:
        self.path, self.reports, self.fresh = path, reports, fresh
        self.count = 0
        self._settings: dict[str, str] | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> Results:
        try:
            self._file = self.path.open("wb" if self.fresh else "ab")
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be written ({error.strerror})") from None
        if self._csv and self._file.tell() == 0:
            self._write(_csv_line(list(FLAT)))
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    @property
    def _csv(self) -> bool:
        return self.path.suffix.lower() == ".csv"

    def done(self) -> Iterator[Any]:
        """Repair a truncated last row, then yield the prompts of the rows that are there.

        Raises:
            BadInput: if the file is not one that a scan wrote.

        """
        _cut_after_last_row(self.path, quotes=self._csv)
        for row in self.rows():
            try:
                mine = settings(row)
            except (KeyError, IndexError, TypeError, ValueError):
                raise BadInput(f"{self.path}: row {self.count + 1} was not written by memguard scan") from None
            self._settings = self._settings or mine
            self.count += 1
            yield row["prompt"]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of the file as they stand there."""
        with self.path.open(encoding="utf-8", newline="") as file:
            if self._csv:
                csv.field_size_limit(LONGEST_CELL)
                yield from csv.DictReader(file)
                return
            for number, line in enumerate(file, 1):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    raise BadInput(f"{self.path}: line {number} is not JSON; choose another --out") from None

    def add(self, report: Report) -> None:
        """Append a report and hand it to the operating system.

        Raises:
            BadInput: if it was made under other settings than the rows that are there.

        """
        row = flat(report, self.count)
        mine = settings(row)
        if mine and self._settings and mine != self._settings:
            name = next(k for k in SETTINGS if mine[k] != self._settings[k])
            raise BadInput(
                f"{self.path}: its rows were made with {name} {self._settings[name]}, this scan has {mine[name]};"
                " --resume needs the same settings"
            )
        self._settings = self._settings or mine
        if self._csv:
            self._write(_csv_line(["" if value is None else value for value in row.values()]))
        else:
            values = {"index": self.count, **report.to_dict()} if self.reports else row
            self._write(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")
        self.count += 1

    def _write(self, text: str) -> None:
        assert self._file is not None
        self._file.write(text.encode())
        self._file.flush()


def open_results(path: Path, resume: bool, force: bool = False) -> Results:
    """Return the results file for ``path``; nothing is written yet.

    Raises:
        BadInput: for another format, a missing folder, or a file that is there and neither continued nor replaced.

    """
    suffix = path.suffix.lower()
    if suffix not in (".jsonl", ".csv", ".parquet"):
        raise BadInput(f"{path}: memguard writes .jsonl, .csv and .parquet")
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{path}: no folder {path.parent}; make it first")
    journal = path.with_name(path.name + ".jsonl")
    for old in (path, journal) if suffix == ".parquet" else (path,):
        if old.exists() and not (resume or force):
            raise BadInput(f"{old}: is there already; continue it with --resume or replace it with --force")
    if suffix == ".parquet":
        from .parquet import ParquetResults  # needs pyarrow: said before an hour of scoring, not after

        return ParquetResults(path, force)
    return Results(path, fresh=force)


def _csv_line(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def _cut_after_last_row(path: Path, quotes: bool) -> None:
    """Cut off a row that was not written to its end; line ends inside quotes do not end a row."""
    if not path.exists():
        path.touch()
    end = position = 0
    inside = False
    with path.open("rb+") as file:
        for line in file:
            position += len(line)
            if quotes and line.count(b'"') % 2:
                inside = not inside
            if line.endswith(b"\n") and not inside:
                end = position
        file.truncate(end)
