"""One SQLite file that several threads and programs share, and that may be missing, locked, damaged or full.

Nothing here raises for the state of the file: an answer comes with "ok" or with one line that names the file and the
remedy, and the next call tries again. A file that is not ours is never written to and never deleted.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

log = logging.getLogger("memguard")

OK = "ok"
PATIENCE = 0.25  # seconds to wait for another program that is writing
T = TypeVar("T")


class _Unusable(Exception):
    """The file is not one that this version may use; the message is the reason and the remedy."""


class Database:
    """The file.

    Args:
        path: of the file; made, with its folder, by the first write.
        tables: statements that make the tables.
        version: of the tables, kept in PRAGMA user_version.

    """

    def __init__(self, path: str | Path, tables: Sequence[str], version: int) -> None:
        self.path = Path(path)
        self._tables = tables
        self._version = version
        self._lock = threading.Lock()  # threads of one program wait here and not for the file
        self._failure: tuple[str, object] | None = None  # why the last write failed, and the file's state then

    def read(self, action: Callable[[sqlite3.Connection], T], otherwise: T) -> tuple[str, T]:
        """Return "ok" and what an action reads, or a reason and ``otherwise``; a missing file reads as the latter."""
        try:
            if not self.path.exists():
                return OK, otherwise
            with self._lock, self._connection() as db:
                db.execute("BEGIN")  # one state of the file for all that is read
                return OK, action(db) if self._made(db) else otherwise
        except (sqlite3.Error, OSError, ValueError, TypeError, _Unusable) as error:
            return self._reason(error), otherwise

    def write(self, action: Callable[[sqlite3.Connection], object]) -> str:
        """Run an action as one transaction, all or nothing; return "ok" or the reason why not."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock, self._connection() as db:
                for pragma in ("auto_vacuum = FULL", "secure_delete = ON", "synchronous = NORMAL"):
                    db.execute(f"PRAGMA {pragma}")
                db.execute("BEGIN IMMEDIATE")
                if not self._made(db):
                    for statement in (*self._tables, f"PRAGMA user_version = {self._version}"):
                        db.execute(statement)
                action(db)
                db.execute("COMMIT")
        except (sqlite3.Error, OSError, ValueError, TypeError, _Unusable) as error:
            self._failure = self._reason(error), self._state()
            return self._failure[0]
        self._failure = None
        return OK

    @property
    def failure(self) -> str | None:
        """Why the last write failed; None if it did not, or if the file has changed since."""
        failure = self._failure
        return failure[0] if failure and failure[1] == self._state() else None

    @property
    def size(self) -> int:
        """Bytes of the file."""
        state = self._state()
        return state[1] if state else 0

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """One connection per call: no thread shares one, and a file that was replaced is seen. Closing rolls back."""
        with closing(sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None)) as db:
            yield db

    def _made(self, db: sqlite3.Connection) -> bool:
        """Whether the tables exist; an empty file has none yet."""
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > self._version:
            reads = f"has format {version}, and this MemGuard reads {self._version}"
            raise _Unusable(f"{reads}; update MemGuard, or rename the file and a new one is begun")
        tables = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        if version != self._version and (version or tables):
            raise _Unusable("is another program's database; rename it, and a new one is begun")
        return bool(tables)

    def _state(self) -> tuple[int, int] | None:
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def _reason(self, error: Exception) -> str:
        said = str(error)
        log.info("%s: %s: %s", self.path, type(error).__name__, said)
        if isinstance(error, _Unusable):
            return f"{self.path} {said}"
        if isinstance(error, OSError):
            full, barred = error.errno == errno.ENOSPC, True
        else:
            full, barred = "full" in said, "readonly" in said or "unable to open" in said
        if full:
            return f"no room for {self.path}; free some space on that disk"
        if barred:
            return f"{self.path} cannot be opened for writing; allow this program to write to its folder"
        if "locked" in said:
            return f"{self.path} is in use by another program; the next run tries again"
        if not isinstance(error, sqlite3.OperationalError) or "malformed" in said or "decode" in said:
            return f"{self.path} is damaged; rename or delete it, and a new one is begun"
        return f"{self.path} cannot be used; the host's log tells why"
