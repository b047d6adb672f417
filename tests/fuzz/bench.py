"""Runs commands in this process on odd input and checks what must hold for each: ``Bench.run``."""

import contextlib
import csv
import io
import json
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memguard import cli
from memguard.commands import models
from memguard.texts import OBEYED, unfit, writable


class Broken(AssertionError):
    """What must hold does not."""


@dataclass
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Bench:
    """A folder to work in, and a model that is loaded once.

    Args:
        pipe: the pipeline that --model stands for, unless it is a folder below the bench's.

    """

    model: Path  # the folder of the same model
    profile: str  # of the same model, JSON

    def __init__(self, folder: Path, pipe: Any) -> None:
        self.folder, self.pipe = folder, pipe
        self.inputs = 0
        self.codes: Counter = Counter()
        self._load = models.load_model

    @contextlib.contextmanager
    def fresh(self, codes: Counter):
        """Clear the folder after an input, and count how it ended."""
        self.codes = codes
        try:
            yield
        finally:
            shutil.rmtree(self.folder)
            self.folder.mkdir()

    def load(self, args: Any) -> Any:
        """Stand in for ``load_model``."""
        return self._load(args) if args.model.startswith(str(self.folder)) else self.pipe

    def run(self, words: list[str], stdin: bytes = b"", may_change: tuple[Path, ...] = ()) -> Outcome:
        """Run a command.

        Args:
            words: of its command line.
            stdin: what it can read there.
            may_change: files that are there and are the command's own to change.

        Raises:
            Broken: for a traceback, an exit code, several lines for one fault, a foreign file that was changed, or a
                command to the terminal.

        """
        self.inputs += 1
        before = contents(self.folder)
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
        plain, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        try:
            models.load_model = self.load
            with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
                try:
                    code = cli.main(words)
                except SystemExit as end:
                    code = end.code if isinstance(end.code, int) else 1
        except BaseException as error:
            raise Broken(f"{words}: {type(error).__name__}: {str(error)[:200]}") from error
        finally:
            models.load_model, sys.stdin = self._load, plain
        out, err = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
        self.codes[code] += 1
        self._check(words, Outcome(code, out, err))
        now = contents(self.folder)
        for path, data in before.items():
            if path not in may_change and now.get(path) != data:
                raise Broken(f"{words}: {path.name} was changed")
        return Outcome(code, out, err)

    def _check(self, words: list[str], done: Outcome) -> None:
        if done.code not in (0, 1, 2):
            raise Broken(f"{words}: exit code {done.code}")
        if "Traceback" in done.err or any(OBEYED.sub("", part) != part for part in (done.out + done.err).split("\n")):
            raise Broken(f"{words}: {done.out[:500]!r} {done.err[:500]!r}")
        said = [line for line in done.err.splitlines() if not line.startswith("note: ")]  # of the package
        if done.code == 2 and len(said) != 1 or not all(line.startswith("memguard") for line in said):
            raise Broken(f"{words}: {done.err[:500]!r}")


def rows(path: Path) -> list[str | None]:
    """The prompts that a results file holds."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).column("prompt").to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.field_size_limit(1 << 24)
            return [row["prompt"] for row in csv.DictReader(file)]
        return [json.loads(line)["prompt"] for line in io.StringIO(file.read(), newline="\n")]


def compare(path: Path, prompts: list[Any]) -> None:
    """Check that a results file has a row for every prompt, in order.

    Raises:
        Broken: if one was lost or changed.

    """
    held = [prompt or None for prompt in rows(path)]
    asked = [(writable(prompt) if isinstance(prompt, str) else None) or None for prompt in prompts]
    if held != asked:
        raise Broken(f"{path.name}: {len(held)} rows of {len(asked)} prompts, {held[:20]!r} for {asked[:20]!r}")


def usable(prompts: list[Any]) -> bool:
    """Whether a prompt can be scored, so that a scan ends with 0."""
    return any(not unfit(prompt) for prompt in prompts)
