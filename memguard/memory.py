"""A small SQLite file that remembers finished runs, so that a known prompt can be flagged while it is typed.

Per run with a verdict: fingerprint and file name of the checkpoint, a hash of the prompt, the words that drive a
flagged one, scores, verdict, seed, time. No prompt, no picture. Nothing here raises for the state of the file.
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .database import OK, Database
from .matching import clue, digest, driving_words, normal
from .records import FLAGGED, VERDICTS, Report, Verdict
from .troubles import in_words

log = logging.getLogger("memguard")

VERSION = 1
TABLES = (
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    "CREATE TABLE runs (id INTEGER PRIMARY KEY, model TEXT NOT NULL, checkpoint TEXT NOT NULL, prompt BLOB NOT NULL, "
    "words TEXT NOT NULL, clue TEXT, verdict TEXT NOT NULL, score REAL, rms REAL, percentile REAL, seed TEXT, "
    "created TEXT)",
    "CREATE INDEX runs_prompt ON runs (prompt, model)",
    "CREATE INDEX runs_checkpoint ON runs (checkpoint)",
    "CREATE INDEX runs_clue ON runs (clue)",
)
# clue: the driving word by which a row is found; none where the words tell nothing
COLUMNS = "model, checkpoint, prompt, words, clue, verdict, score, rms, percentile, seed, created"
# an ordinary verdict clears the same prompt's earlier ones on the same model
STANDING = f"""SELECT id, {COLUMNS} FROM runs AS run WHERE verdict IN ('suspicious', 'memorized') AND NOT EXISTS (
    SELECT 1 FROM runs AS later WHERE later.prompt = run.prompt AND later.model = run.model
    AND later.id > run.id AND later.verdict = 'ordinary') AND """


@dataclass(frozen=True)
class PromptWarning:
    """Why a text is flagged: the run that it reminds of.

    Attributes:
        kind: "prompt" for the same prompt, "words" for one that contains all its driving words.
        words: the driving words of that run, as ``matching.normal`` writes them; none where they are unknown.
        verdict: of that run, as are the others.
        score: L2 norm of the noise gap, mean over images.
        percentile: share of ordinary prompts that score lower, 0..100.
        checkpoint: file name; empty where the host did not know it.
        seed: of the first image.
        created: date and time, ISO 8601.

    """

    kind: Literal["prompt", "words"]
    words: tuple[str, ...]
    verdict: Verdict
    score: float | None
    percentile: float | None
    checkpoint: str
    seed: int | None
    created: str


@dataclass(frozen=True)
class Facts:
    """Whether runs are remembered, what hinders it ("ok" if nothing), number of runs, size of the file in bytes."""

    enabled: bool
    status: str
    rows: int
    bytes: int


def remembered(memory: Callable[[], PromptMemory], report: Report, checkpoint: Callable[[], str]) -> str | None:
    """Remember a finished run; return a note for its report where that failed. Whatever it is costs no picture.

    Args:
        memory: opens the memory.
        report: of the run.
        checkpoint: its model's file name.

    """
    try:
        reason = memory().remember(report, checkpoint())
    except Exception as error:
        log.warning("memory of known prompts: %s", error, exc_info=error)
        reason = in_words(error)
    if reason == OK:
        return None
    log.warning("memory of known prompts is off: %s", reason)
    return f"memory of known prompts is off: {reason}"


class PromptMemory:
    """The memory in one file.

    Args:
        path: of the file; made, with its folder, when there is something to remember.
        max_rows: number of runs that are kept; the oldest go.

    """

    def __init__(self, path: str | Path, max_rows: int = 10_000) -> None:
        self.max_rows = max_rows
        self._file = Database(path, TABLES, VERSION)

    def remember(self, report: Report, checkpoint: str = "") -> str:
        """Remember a run that has a prompt, a model and a verdict; any other teaches nothing and is left out.

        Returns:
            "ok", also where memory is switched off, or the reason why the run is not remembered.

        """
        text = normal(report.prompt or "")
        if not (text and report.model and report.verdict in VERDICTS):
            return OK
        status, enabled = self._file.read(_enabled, True)
        if status != OK or not enabled:
            return status
        finding = next(f for f in report.findings if f.verdict == report.verdict)
        if finding.carried:  # the pass that it comes from is remembered
            return status
        seed = str(report.seeds[0]) if report.seeds else None  # may be larger than SQLite's integers
        words = driving_words(report.attribution) if report.flagged else ()
        values = (
            *(report.model, _storable(checkpoint), digest(text), " ".join(words), clue(words), report.verdict),
            *(_finite(finding.score), _finite(finding.mean_rms), finding.percentile, seed, report.created),
        )

        def add(db: sqlite3.Connection) -> None:
            db.execute(f"INSERT INTO runs ({COLUMNS}) VALUES ({', '.join('?' * len(values))})", values)
            db.execute("DELETE FROM runs WHERE id <= (SELECT MAX(id) FROM runs) - ?", (self.max_rows,))

        return self._file.write(add)

    def look(self, texts: Sequence[str], checkpoints: Sequence[str] = ()) -> tuple[str, list[PromptWarning | None]]:
        """Compare texts with the flagged runs on some checkpoints, given by file name; none means on any.

        A text is flagged if it is a prompt whose latest verdict is not ordinary, or if it contains all driving words of
        such a prompt as whole words, in any order, one of which must tell something (``matching.clue``). A text whose
        own latest verdict is ordinary is not flagged for its words: measured beats guessed. A file name stands for the
        model that was last seen under it.

        Returns:
            "ok" or the reason why nothing could be looked up, and one entry per text.

        """
        nothing: list[PromptWarning | None] = [None] * len(texts)

        def compare(db: sqlite3.Connection) -> list[PromptWarning | None]:
            if not _enabled(db):
                return nothing
            models = _models(db, checkpoints)
            return [_warning(db, normal(text), models) for text in texts]

        return self._file.read(compare, nothing)

    def enable(self, enabled: bool) -> str:
        """Switch memory on or off, for every program that uses the file; return "ok" or the reason why not."""
        statement = "INSERT OR REPLACE INTO settings VALUES ('enabled', ?)"
        return self._file.write(lambda db: db.execute(statement, (int(enabled),)))

    def clear(self) -> str:
        """Forget all runs; their bytes are overwritten and the file shrinks. Return "ok" or the reason why not."""
        return self._file.write(lambda db: db.execute("DELETE FROM runs"))

    def facts(self) -> Facts:
        """Return what a settings page shows; a failure of the last write stands until the file has changed."""
        count = "SELECT COUNT(*) FROM runs"
        status, (enabled, rows) = self._file.read(lambda db: (_enabled(db), db.execute(count).fetchone()[0]), (True, 0))
        return Facts(enabled, self._file.failure or status if status == OK else status, rows, self._file.size)


def _enabled(db: sqlite3.Connection) -> bool:
    row = db.execute("SELECT value FROM settings WHERE name = 'enabled'").fetchone()
    return row is None or bool(row[0])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _storable(name: str) -> str:
    """Return a file name without the lone surrogates that stand for undecodable bytes."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _standing(db: sqlite3.Connection, where: str, value: Any) -> list[sqlite3.Row]:
    cursor = db.execute(STANDING + where, (value,))
    cursor.row_factory = sqlite3.Row
    return cursor.fetchall()


def _models(db: sqlite3.Connection, checkpoints: Sequence[str]) -> set[str] | None:
    """Return the model last seen under each file name; None stands for all."""
    newest = "SELECT model FROM runs WHERE checkpoint = ? ORDER BY id DESC LIMIT 1"
    rows = [db.execute(newest, (_storable(name),)).fetchone() for name in checkpoints]
    return {row[0] for row in rows if row} if checkpoints else None


def _warning(db: sqlite3.Connection, text: str, models: set[str] | None) -> PromptWarning | None:
    own = db.execute("SELECT model, verdict FROM runs WHERE prompt = ? ORDER BY id", (digest(text),)).fetchall()
    latest = {model: verdict for model, verdict in own if models is None or model in models}
    if any(verdict in FLAGGED for verdict in latest.values()):
        same = [row for row in _standing(db, "prompt = ?", digest(text)) if row["model"] in latest]
        row = _gravest(same)
        words = [other["words"] for other in same if other["model"] == row["model"] and other["words"]]
        return _as_warning("prompt", row, words[-1] if words else "")
    inside = set(text.split())
    rows = [
        row for word in inside for row in _standing(db, "clue = ?", word) if inside.issuperset(row["words"].split())
    ]
    alike = [row for row in rows if row["model"] not in latest and (models is None or row["model"] in models)]
    return _as_warning("words", _gravest(alike), _gravest(alike)["words"]) if alike else None


def _gravest(rows: list[sqlite3.Row]) -> sqlite3.Row:
    """Return the row with the gravest verdict; of several the newest."""
    return max(rows, key=lambda row: (VERDICTS.index(row["verdict"]), row["id"]))


def _as_warning(kind: Literal["prompt", "words"], row: sqlite3.Row, words: str) -> PromptWarning:
    seed = None if row["seed"] is None else int(row["seed"])
    told = {name: row[name] for name in ("verdict", "score", "percentile", "checkpoint", "created")}
    return PromptWarning(kind=kind, words=tuple(words.split()), seed=seed, **told)
