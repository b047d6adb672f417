"""The signatures of a folder's pictures, kept in a file and brought up to date: new, changed and vanished pictures.

A picture has changed where its size or its time of change has. The file is written as the reading goes on, so that a
reading that was interrupted continues; where it cannot be written, the search goes on without it.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..calibration.store import home
from ..database import OK, Database
from ..texts import HALF
from ..troubles import Refused
from .reading import files_of
from .signatures import Found, Signatures, signature

TABLES = (
    "CREATE TABLE about (folder TEXT NOT NULL, kind TEXT NOT NULL)",
    "CREATE TABLE pictures (name TEXT PRIMARY KEY, size INTEGER NOT NULL, modified INTEGER NOT NULL,"
    " signature BLOB NOT NULL)",
)
VERSION = 0x6D676370  # "mgcp"; no other program's databases have it
SQLITE = b"SQLite format 3\0"  # at the beginning of every database of SQLite
BATCH = 64  # pictures of a transaction
Stamp = tuple[int, int]  # size, time of change in nanoseconds


@dataclass
class Update:
    """What came of bringing an index up to date.

    Attributes:
        new: pictures that were read for the first time.
        changed: pictures that were read again.
        vanished: pictures that are no longer there.
        broken: pictures that cannot be read, one line each.
        kept: "ok", or one line that says why the file could not be written.

    """

    new: int = 0
    changed: int = 0
    vanished: int = 0
    broken: list[str] = field(default_factory=list)
    kept: str = OK


class Index:
    """The index of a folder.

    Args:
        folder: of the pictures; folders inside it count.
        signatures: what is kept of a picture.
        path: of the file; None: one of its own in MEMGUARD_HOME or .memguard in the user's home.

    Attributes:
        names: of the pictures, relative to the folder, as ``Found`` numbers them.

    Raises:
        Refused: if there is no such folder, or the file is the index of something else.

    """

    def __init__(self, folder: Path, signatures: Signatures, path: Path | None = None) -> None:
        self.folder = folder
        self._signatures = signatures
        about = (str(folder.resolve()), signatures.kind)
        given = path
        if path is None:
            name = hashlib.sha256("\0".join(about).encode("utf-8", "surrogateescape")).hexdigest()[:16]
            path = home() / "copies" / f"{name}.sqlite"
        self._file = Database(path, (*TABLES, _insert_about(about)), VERSION)
        self.names: list[str] = []
        self._kept, known = self._file.read(_read_about, about)
        if self._kept != OK and given is not None and not _is_database(given):
            self._kept = f"{path} is no index of memguard; it is left as it is, choose another name"
        if self._kept == OK and known != about:
            raise Refused(f"{path}: is the index of {' and '.join(known)}; choose another name")

    def update(self, seen: Callable[[Iterable[Path]], Iterable[Path]] = lambda paths: paths) -> Update:
        """Read the pictures that are new or changed, and forget those that vanished.

        Args:
            seen: is handed the pictures that are to be read, and hands them on; for a progress bar.

        Raises:
            Refused: if the folder cannot be read.

        """
        there = {path.relative_to(self.folder).as_posix(): path for path in files_of(self.folder)}
        stamps = {name: stamp for name, path in there.items() if (stamp := _stamp(path))}
        none: list[tuple[str, Stamp, bytes]] = []
        reason, rows = self._file.read(_read_pictures, none)
        size = self._size
        known = {name: (stamp, blob) for name, stamp, blob in rows if len(blob) == size}
        result = Update(kept=self._kept if self._kept != OK else reason)
        gone = [name for name, *_ in rows if name not in stamps]
        result.vanished = len(gone)
        unread = {name for name, stamp in stamps.items() if name not in known or known[name][0] != stamp}
        fresh: list[tuple[str, Stamp, bytes]] = []
        blobs = {name: blob for name, (_, blob) in known.items() if name in stamps and name not in unread}
        for path in seen([there[name] for name in sorted(unread)]):
            name = path.relative_to(self.folder).as_posix()
            try:
                made = signature(self._signatures, path)
            except Refused as error:
                result.broken.append(str(error))
                gone += [name] if name in known else []
                continue
            blobs[name] = made.numpy().tobytes()
            fresh.append((name, stamps[name], blobs[name]))
            result.changed += name in known
            result.new += name not in known
            if len(fresh) >= BATCH:
                self._write(result, fresh, ())
                fresh = []
        if fresh or gone:
            self._write(result, fresh, gone)
        self.names = sorted(blobs)
        self._blobs = blobs
        return result

    def open(self) -> Found:
        """Return the pictures for a search, after ``update``.

        Raises:
            Refused: if there are none.

        """
        if not self.names:
            raise Refused(f"{self.folder}: holds no picture that can be read")
        joined = bytearray(b"".join(self._blobs.pop(name) for name in self.names))
        values = torch.frombuffer(joined, dtype=self._signatures.dtype)
        return self._signatures.open(values.reshape(-1, *self._signatures.shape))

    @property
    def _size(self) -> int:
        return self._signatures.dtype.itemsize * math.prod(self._signatures.shape)

    def _write(self, result: Update, fresh: list[tuple[str, Stamp, bytes]], gone: Iterable[str]) -> None:
        if result.kept != OK:
            return  # as it was said already

        def action(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM pictures WHERE name = ?", [(name,) for name in gone])
            # a name of bytes that are no text is read anew each time
            rows = [(name, *stamp, blob) for name, stamp, blob in fresh if not HALF.search(name)]
            db.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", rows)

        result.kept = self._file.write(action)


def _is_database(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(SQLITE)) == SQLITE
    except OSError:  # which has been said
        return True


def _insert_about(about: tuple[str, str]) -> str:
    folder, kind = (text.replace("'", "''") for text in about)
    return f"INSERT INTO about VALUES ('{folder}', '{kind}')"


def _read_about(db: sqlite3.Connection) -> tuple[str, str]:
    found: tuple[str, str] = db.execute("SELECT folder, kind FROM about").fetchone()
    return found


def _read_pictures(db: sqlite3.Connection) -> list[tuple[str, Stamp, bytes]]:
    rows = db.execute("SELECT name, size, modified, signature FROM pictures")
    return [(name, (size, modified), blob) for name, size, modified, blob in rows]


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:  # it has just vanished
        return None
    return found.st_size, found.st_mtime_ns
