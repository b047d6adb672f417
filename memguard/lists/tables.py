"""Tables of text: which delimiter they have, where their header is, and whether their quotes quote or are text."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .columns import LONGEST, BadInput

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
BLANK = ",;\t \r\n"  # what a line without a cell is made of
NONE = "\x1f"  # the delimiter of a table of one column, whose lines hold commas as they like
HINT = re.compile(r'\s*"?sep=(\t|\\t|[^\s\w"])"?\s*', re.IGNORECASE)  # spreadsheets write it above the header

Lines = Callable[[], Iterator[str]]


def cells(lines: Lines, name: str, choose: Callable[[list[str]], str]) -> Iterator[Any]:
    """Yield one cell of each row; None where a row is too short to have it.

    Args:
        lines: begins the file anew each time that it is called.
        name: of the file, for errors.
        choose: returns which of the columns is asked for.

    Raises:
        BadInput: for a file that is no table.

    """
    csv.field_size_limit(LONGEST)
    table = _table(lines, name)
    if table is None:
        return
    index = table.names.index(choose(table.names))
    quotes = _quotes(table)
    for row in table.rows(quotes):
        yield row[index] if index < len(row) else None


@dataclass
class _Table:
    lines: Lines
    name: str
    above: int  # lines down to the header
    delimiter: str
    names: list[str]

    def rows(self, quotes: bool) -> Iterator[list[str]]:
        """Yield the rows below the header.

        Raises:
            BadInput: for cells that do not fit.

        """
        source = islice(self.lines(), self.above, None)
        quoting: Any = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
        reader = csv.reader(source, delimiter=self.delimiter, strict=True, quoting=quoting)
        try:
            for row in reader:
                if any(row[len(self.names) :]):
                    what = DELIMITERS.get(self.delimiter, repr(self.delimiter))
                    raise BadInput(
                        f"{self.name}: line {self.above + reader.line_num} has {len(row)} cells, and the header has"
                        f" {len(self.names)}; quote cells that hold {what}"
                    )
                if row:
                    yield row
        except csv.Error as error:
            raise BadInput(
                f"{self.name}: not a table of cells (line {self.above + reader.line_num}: {error}); quote cells that"
                " hold quotes or line ends"
            ) from None


def _table(lines: Lines, name: str) -> _Table | None:
    """Find the header below blank lines, rows of empty cells and spreadsheets' hint; None for a file without one."""
    given = None
    for number, line in enumerate(lines(), 1):
        line = line.lstrip("\ufeff")
        hint = HINT.fullmatch(line)
        if hint and given is None:
            given = "\t" if hint[1] == "\\t" else hint[1]
        elif line.strip(BLANK):
            try:
                # the right delimiter splits the header into the most cells; of equals, the first
                split = {d: next(csv.reader([line], delimiter=d)) for d in ([given] if given else DELIMITERS)}
            except (csv.Error, TypeError, ValueError):  # ValueError: a hint that names a quote or a line end
                raise BadInput(f"{name}: line {number} is no header of a table; name its columns there") from None
            delimiter, names = max(split.items(), key=lambda item: len(item[1]))
            single = given is None and len(names) == 1
            return _Table(lines, name, number, NONE if single else delimiter, [cell.strip() for cell in names])
    return None


def _quotes(table: _Table) -> bool:
    """Return whether quotes enclose cells, from the whole file; where they do not, they are text.

    Raises:
        BadInput: if the file is a table neither way.

    """
    wrong = None
    long = False  # whether a cell reaches over several lines
    try:
        for row in table.rows(quotes=True):
            long = long or any("\n" in cell or "\r" in cell for cell in row)
    except BadInput as error:
        wrong = error
    tabs = table.delimiter == "\t" and len(table.names) > 1
    if wrong is None and not (long and tabs):
        return True
    # Tables separated by tabs often do not quote: a cell that begins with a quote would swallow the lines up to the
    # next one. If each line is a whole row by itself, its quotes are text.
    try:
        whole = all(len(row) == len(table.names) or (tabs and wrong) for row in table.rows(quotes=False))
    except BadInput:
        whole = False
    if wrong and not whole:
        raise wrong
    return not whole
