"""What scores rows of a list: the model of a command's arguments, loaded once, and scans with it."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from ..lists import BadInput
from ..records import Report
from . import common, models, promoting

WEIGHTS = (".safetensors", ".json", ".txt", ".model")
PIECE = 1 << 16  # bytes of a large file that are read at its beginning, middle and end


class Scanner:
    """A loaded model, and the settings to scan with; the model is loaded when it is first needed.

    Args:
        args: of ``memguard scan``.

    Raises:
        BadInput: from every attribute and method, for a model or settings that cannot be used.

    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args

    @cached_property
    def profile(self) -> Any:
        """The profile that was asked for, or None."""
        from ..calibration import Profile

        try:
            return None if self.args.profile is None else Profile.read(self.args.profile)
        except ValueError as error:  # ProfileError
            raise BadInput(str(error)) from None

    @cached_property
    def pipe(self) -> Any:
        """The pipeline."""
        from ..guard import Guard

        try:
            # what these refuse costs no loading
            _ = self.profile
            Guard(common.detectors(self.args), sensitivity=self.args.sensitivity)
            return models.load_model(self.args)
        except ValueError as error:
            raise BadInput(str(error)) from None

    @cached_property
    def made(self) -> dict[str, Any]:
        """What rows depend on besides the arguments."""
        return models.kept_model(self.pipe, self.profile)

    @cached_property
    def sieve(self) -> Any:
        """The two scans of a pre-scan, or None without one."""
        args = self.args
        if args.prescan is None:
            return None
        from ..hosts.diffusers.prescanning import Sieve

        first = promoting.read(args)
        settings = common.settings(args) | {"profile": self.profile, "sensitivity": args.sensitivity}
        try:
            return Sieve(self.pipe, first, args.promote, **settings, own_seeds=args.own_seeds)
        except ValueError as error:
            said, command, _ = str(error).partition(": memguard calibrate")
            whole = f": {promoting.remedy(args)}" if command else ""  # with the model, and what else the scan has
            raise BadInput(f"{args.prescan}: {said}{whole}") from None

    @cached_property
    def grain(self) -> int:
        """Rows that stay together: what begins at a multiple of it is scored to the same bits as the whole list."""
        from ..hosts.diffusers.scans import grain

        return grain(self.args.num_images, self.args.batch_size) if self.sieve is None else int(self.sieve.block)

    def reports(self, prompts: Iterable[Any], start: int = 0) -> Iterator[Report]:
        """Yield the reports of prompts, the first of which is row ``start`` of its list."""
        from ..hosts.diffusers import scan

        args = self.args
        if self.sieve is not None:
            reports: Iterator[Report] = self.sieve.reports(
                prompts, count(args.seed + start) if args.own_seeds else None
            )
            return reports
        settings = common.settings(args) | {"own_seeds": args.own_seeds}
        settings["seed"] += start if args.own_seeds else 0
        try:
            return scan(self.pipe, prompts, profile=self.profile, sensitivity=args.sensitivity, **settings)
        except ValueError as error:
            raise BadInput(str(error)) from None


def named(model: str) -> str:
    """Return hex digits that name the files of a model without loading it: their names, sizes and pieces of each.

    The same files have the same name wherever they lie. The test bed's is its version's.
    """
    path = Path(model)
    if model == models.TESTBED or not path.exists():
        from ..version import VERSION

        return f"{model} {VERSION}"
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in WEIGHTS and p.is_file())
    made = hashlib.sha256()
    for each in files:
        size = each.stat().st_size
        name = each.name if path.is_file() else each.relative_to(path).as_posix()
        made.update(f"{name} {size} ".encode("utf-8", "backslashreplace"))
        with each.open("rb") as file:
            for place in sorted({0, max(size // 2 - PIECE // 2, 0), max(size - PIECE, 0)}):
                file.seek(place)
                made.update(file.read(PIECE))
    return made.hexdigest()[:12]
