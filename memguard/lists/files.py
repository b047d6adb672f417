"""Files that are written: whose they are, and that nobody else writes them at the same time."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from .columns import BadInput

BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
PLACE = 1 << 62  # the byte that is locked where locks keep others from reading, far behind what is written


def no_input(target: Path, inputs: Iterable[Path | None]) -> None:
    """Check, before anything is opened, that a file to be written is none of those that are read.

    Raises:
        BadInput: if it is one, under whatever name.

    """
    for each in inputs:
        try:
            same = each is not None and os.path.samefile(target, each)
        except (OSError, ValueError):  # one of them is not there
            continue
        if same:
            raise BadInput(f"{target}: is the same file as {each}, which is read; choose another name for the result")


def unwritable(target: object, error: OSError) -> BadInput:
    """Return the one line for a file or folder that cannot be written."""
    return BadInput(f"{target}: cannot be written ({error.strerror or type(error).__name__})")


def target(path: Path, ours: Callable[[Path], bool], inputs: Iterable[Path | None] = ()) -> None:
    """Check, before the work, that a file can be written whole: it is no input, and what is there is memguard's.

    Args:
        path: of the file.
        ours: whether a file that is there was written by memguard.
        inputs: files that are read meanwhile.

    Raises:
        BadInput: if not.

    """
    no_input(path, inputs)
    folder(path.parent)
    try:
        os.fsencode(path)
        there = path.exists()
        if (there or path.is_symlink()) and not (path.is_file() and ours(path)):
            raise BadInput(f"{path}: was not written by memguard; it is left as it is, choose another name")
        if there and not os.access(path, os.W_OK):
            raise unwritable(path, OSError(errno.EACCES, os.strerror(errno.EACCES)))
    except OSError as error:
        raise unwritable(path, error) from None
    except ValueError:  # UnicodeEncodeError
        raise BadInput(f"{path}: is no name for a file; choose another") from None


def is_page(path: Path) -> bool:
    """Whether a file is an HTML page of memguard."""
    with path.open("rb") as file:
        head = file.read(4096)
    return head.startswith(b"<!doctype html>") and b"<title>MemGuard" in head


def folder(path: Path) -> None:
    """Make a folder and check that files can be written there, so that it does not turn out after the work.

    Raises:
        BadInput: if not.

    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except FileExistsError:
        raise BadInput(f"{path}: cannot be written, it is a file; give a folder") from None
    except (OSError, ValueError) as error:
        raise unwritable(path, error if isinstance(error, OSError) else OSError(0, "no name for a folder")) from None


def created(path: Path) -> BinaryIO:
    """Create a file that is not there yet, for this process alone.

    Raises:
        BadInput: if it is there, or cannot be created.

    """
    try:
        return locked(path.open("xb", buffering=0), path)
    except FileExistsError:
        raise BadInput(f"{path}: somebody else has just made it; choose another name") from None
    except (OSError, ValueError) as error:
        raise unwritable(path, error if isinstance(error, OSError) else OSError(0, "no name for a file")) from None


def held(path: Path) -> BinaryIO:
    """Open a file that is there, for this process alone; nothing is changed.

    Raises:
        BadInput: if it cannot be written, or somebody else is writing it.

    """
    if not path.is_file():
        raise BadInput(f"{path}: is {'a folder' if path.is_dir() else 'no regular file'}; choose another name")
    try:
        return locked(path.open("r+b", buffering=0), path)
    except OSError as error:
        raise unwritable(path, error) from None


def locked(file: Any, path: Path) -> BinaryIO:
    """Lock an open file until it is closed, where the file system can.

    Raises:
        BadInput: if another process has it.

    """
    try:
        try:
            import fcntl
        except ImportError:
            import msvcrt  # Windows

            file.seek(PLACE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            file.seek(0)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in BUSY:
            file.close()
            raise BadInput(f"{path}: another memguard is writing it; wait for its end or choose another name") from None
    found: BinaryIO = file
    return found
