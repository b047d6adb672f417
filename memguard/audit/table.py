"""An audit as lines of text: a row for each checkpoint, and the training pictures that came out of the last one."""

from __future__ import annotations

from ..texts import shown
from .page import HEADER, reason, row
from .record import Audit, Checked

COLUMNS = 6  # of HEADER; the page shows all


def rows(audit: Audit) -> list[list[str]]:
    """Return the table as cells, its head first."""
    return [[shown(cell) for cell in line[:COLUMNS]] for line in (HEADER, *map(row, audit.checkpoints))]


def copied(audit: Audit) -> list[str]:
    """Return a line for each training picture that the last checkpoint that was audited copies."""
    return [
        shown(f"copied: {each.name} (likeness {max(each.own):.2f}{_elsewhere(each)}): {each.caption}")
        for checkpoint in audit.done[-1:]
        for each in checkpoint.pictures
        if each.copied
    ]


def _elsewhere(each: Checked) -> str:
    """Return which other caption brings a picture that its own one does not."""
    return f"; it comes out of the caption of {each.captions[0]}" if each.captions and not each.copies else ""


def lines(audit: Audit) -> list[str]:
    """Return the table in columns, and under it why checkpoints were not audited, and the copied pictures."""
    found = rows(audit)
    widths = [max(len(line[i]) for line in found) for i in range(2)]
    table = []
    for line in found:
        cells = "".join(f"  {cell:>9}" for cell in line[2:])
        table.append(f"{line[0]:<{widths[0]}}  {line[1]:<{widths[1]}}{cells}".rstrip())
    return [*table, *(shown(reason(each)) for each in audit.checkpoints if each.error), *copied(audit)]
