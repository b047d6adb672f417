"""Pictures of a run looked up in a folder: the index is brought up to date, and stays open for the next run.

Part of the ComfyUI host.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
from comfy.cli_args import args
from torch import Tensor

from ...copies.index import Index, Update
from ...copies.reading import files_of, read
from ...copies.signatures import Found, Signatures, Thumbnails
from ...troubles import Refused

log = logging.getLogger("memguard")


@dataclass(frozen=True)
class Match:
    """The nearest picture of the folder to one of a run's pictures.

    Attributes:
        path: of the file.
        similarity: to it.

    """

    path: Path
    similarity: float


@dataclass
class _Opened:
    """The folder that was searched last."""

    folder: Path
    kind: str
    names: list[str]
    found: Found


_last: _Opened | None = None


def folder_of(name: str) -> Path:
    """Return the folder of a name: one below ComfyUI's input folder, or a whole path.

    A workflow that comes from another machine must not show the pictures of this one, so a whole path is for a ComfyUI
    that listens to this machine alone.

    Raises:
        ValueError: if there is none, or if it may not be read.

    """
    inputs = Path(folder_paths.get_input_directory())
    path = inputs / name.strip()
    if not _alone() and not path.resolve().is_relative_to(inputs.resolve()):
        raise Refused(
            f"folder {name!r} is outside of ComfyUI's input folder, and this ComfyUI listens to other machines; "
            "put the pictures into a folder below the input folder"
        )
    if not name.strip() or not path.is_dir():
        raise Refused(f"folder {name!r}: no such folder; give a whole path, or a folder below ComfyUI's input folder")
    return path


def _alone() -> bool:
    """Whether the server listens to this machine alone."""
    addresses = [each.strip() for each in str(args.listen).split(",")]
    return all(each == "localhost" or _loopback(each) for each in addresses)


def _loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        return False


def state(name: str) -> str:
    """Return what changes when a picture of a folder comes, goes or changes."""
    found = hashlib.sha256()
    for path in files_of(folder_of(name)):
        stat = path.stat()
        found.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def find(images: Tensor, name: str, kind: Signatures | None = None) -> tuple[list[Match], Update]:
    """Return the nearest picture of a folder to each picture of a run, and what came of reading the folder.

    Args:
        images: float [B, H, W, 3] in 0..1.
        name: of the folder.
        kind: of signatures; None: thumbnails.

    Raises:
        ValueError: in one line, if there is no such folder, or no picture in it.

    """
    global _last
    kind = kind or Thumbnails()
    folder = folder_of(name)
    index = Index(folder, kind)
    update = index.update(_watched)
    for said in update.broken:
        log.warning("%s", said)
    if update.kept != "ok":
        log.warning("the index is not kept: %s", update.kept)
    changed = update.new or update.changed or update.vanished
    if changed or _last is None or (_last.folder, _last.kind, _last.names) != (folder, kind.kind, index.names):
        _last = None  # before another one is held
        _last = _Opened(folder, kind.kind, index.names, index.open())
    pictures = images[..., :3].float().movedim(-1, 1).clamp(0, 1)
    signatures = kind.make([picture[None] for picture in pictures])
    similarities, places = _last.found.nearest(signatures, 1, [None] * len(signatures))
    pairs = zip(similarities[:, 0].tolist(), places[:, 0].tolist(), strict=True)
    return [Match(folder / index.names[place], similarity) for similarity, place in pairs], update


def picture_of(match: Match) -> Tensor:
    """Return the picture of a match as ComfyUI has them, float32 [1, H, W, 3]."""
    return read(match.path, whole=True).movedim(1, -1)


def _watched(paths: Iterable[Path]) -> Iterator[Path]:
    """Hand on pictures with ComfyUI's progress bar; its stop button ends the reading."""
    every = list(paths)
    bar = comfy.utils.ProgressBar(len(every))
    for path in every:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield path
        bar.update(1)
