"""Files that a trainer saved: how long each was trained, their order, and which of a folder are written to their end.

No trainer is imported. kohya's sd-scripts write the epoch into the metadata (``ss_epoch``, ``ss_steps``) and, but for
the last one, into the name (``name-000008``); ai-toolkit writes ``training_info`` and ``name_000000500``; OneTrainer
``name-...-8-500`` or ``...__500-8-0``; diffusers' scripts and SimpleTuner folders ``checkpoint-500``; ComfyUI's node
``name_500_steps_00001_``. What says nothing is ordered by name, with numbers as numbers.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMED = (
    ("epoch", re.compile(r"(?:^|[-_ .])epoch[-_ ]?(\d+)(?=$|[-_ .])", re.IGNORECASE)),
    ("step", re.compile(r"(?:^|[-_ .])(\d+)[-_ ]steps?(?=$|[-_ .])", re.IGNORECASE)),
    ("step", re.compile(r"(?:^|[-_ .])(?:checkpoint|steps?)[-_ ]?(\d+)(?=$|[-_ .])", re.IGNORECASE)),
    ("epoch", re.compile(r"-(\d{6})$")),  # kohya
    ("step", re.compile(r"_(\d{9})$")),  # ai-toolkit
)
FOLDER = re.compile(r"(checkpoint|step|epoch)[-_](\d+)")
HEADER = 1 << 26  # bytes; a longer header of a .safetensors file is none
LAST = 1 << 40  # the order of a file without a number whose neighbours have one: trainers save it at the end


@dataclass(frozen=True)
class Age:
    """How long a checkpoint was trained: ``number`` of ``kind``, "epoch" or "step"; no number where nothing says so."""

    kind: str = ""
    number: int | None = None

    def said(self, name: str) -> str:
        """Return it in words, or a name."""
        return name if self.number is None else f"{self.kind} {self.number}"


def metadata(path: Path) -> dict[str, str] | None:
    """Return the metadata of a .safetensors file; None where the file is no such, or not written to its end."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > HEADER:
                return None
            header = json.loads(file.read(length))
        kept = header.pop("__metadata__", None) or {}
        end = max((each["data_offsets"][1] for each in header.values()), default=0)
        whole = path.stat().st_size == 8 + length + end
        return {str(k): str(v) for k, v in kept.items()} if whole else None
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None


def age(path: Path) -> Age:
    """Return how long the file of a checkpoint was trained, by its metadata, else by its name or its folder's."""
    kept = metadata(path) if path.suffix == ".safetensors" and path.is_file() else None
    kept = kept or {}
    for kind in ("epoch", "step"):
        number = kept.get(f"ss_{kind}" if kind == "epoch" else "ss_steps", "")
        if number.isdecimal():
            return Age(kind, int(number))
    try:
        told = json.loads(kept.get("training_info", "{}"))
        for kind in ("step", "epoch"):
            if isinstance(told.get(kind), int) and told[kind] > 0:
                return Age(kind, told[kind])
    except (ValueError, AttributeError, RecursionError):
        pass
    for kind, pattern in NAMED:
        found = pattern.search(path.stem if path.suffix == ".safetensors" else path.name)
        if found:
            return Age(kind, int(found[1]))
    inside = FOLDER.fullmatch(path.parent.name)
    return Age("epoch" if inside[1] == "epoch" else "step", int(inside[2])) if inside else Age()


def place(checkpoint: Any) -> int:
    """Return where a checkpoint with an ``age`` stands in the order of the training."""
    number: int | None = checkpoint.age.number
    return LAST if number is None else number


def files(path: Path) -> list[Path]:
    """Return a file, or the .safetensors files of a folder; nothing where there is none."""
    if path.is_dir():
        return sorted(each for each in path.rglob("*.safetensors") if each.is_file())
    return [path] if path.exists() else []


def ordered(paths: Iterable[Path]) -> list[Path]:
    """Return files in the order in which they were trained; one without a number comes last."""

    def key(path: Path) -> tuple[int, list[tuple[int, int, str]]]:
        number = age(path).number
        parts = re.split(r"(\d+)", path.as_posix())
        natural = [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]
        return LAST if number is None else number, natural

    return sorted(dict.fromkeys(paths), key=key)


def names(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the shortest name of each file that no other one has: its own, or with its folders.

    Where the folder says how long it was trained (``checkpoint-500/pytorch_lora_weights.safetensors``), it belongs to
    the name, also of a file that is named alone: the next one of the training has the same name in another folder.
    """
    paths = list(dict.fromkeys(paths))
    found: dict[Path, str] = {}
    for path in paths:
        for count in range(2 if FOLDER.fullmatch(path.parent.name) else 1, len(path.parts) + 1):
            name = "/".join(path.parts[-count:])
            if sum("/".join(other.parts[-count:]) == name for other in paths) == 1:
                break
        found[path] = name
    return found


def digest(path: Path) -> str:
    """Return 16 hex digits that name what is in a file, or in the .safetensors files of a folder."""
    found = hashlib.sha256()
    for each in files(path):
        with each.open("rb") as file:
            while block := file.read(1 << 20):
                found.update(block)
    return found.hexdigest()[:16]


class Watched:
    """A folder in which a trainer saves.

    A file is ready when it was written to its end: its size is what its header says, and neither size nor time changed
    since the look before. A file that is written anew is ready anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[Path, tuple[int, int]] = {}
        self._given: dict[Path, tuple[int, int]] = {}

    def ready(self) -> list[Path]:
        """Return the files that became ready since the look before, in the order of their age."""
        found: dict[Path, tuple[int, int]] = {}
        for path in self.folder.rglob("*.safetensors"):
            try:
                stat = path.stat()
            except OSError:  # a trainer keeps the last few only
                continue
            found[path] = stat.st_size, stat.st_mtime_ns
        new = [
            path
            for path, state in found.items()
            if self._given.get(path) != state and self._seen.get(path) == state and metadata(path) is not None
        ]
        self._seen = found
        self._given |= {path: found[path] for path in new}
        return ordered(new)
