"""A folder of training pictures as trainers have it: captions beside them or in metadata.jsonl, repeats in its name.

One bad picture or caption is one line of ``notes``, and the rest is read.
"""

from __future__ import annotations

import errno
import json
import os
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from ..copies.depth import eight_bits
from ..lists import BadInput
from ..texts import shown, unfit, writable

PICTURES = frozenset(".png .jpg .jpeg .webp .bmp .gif .tif .tiff .avif .jxl".split())
CAPTIONS = (".txt", ".caption")  # beside a picture, under its name
METADATA = "metadata.jsonl"  # of the library datasets: one row per picture, with file_name
COLUMNS = ("text", "caption", "prompt")  # of METADATA
REPEATS = re.compile(r"(\d+)_(.*)")  # kohya's folders: how often an epoch shows each picture, and their words
MASK = "-masklabel"  # OneTrainer's masks lie beside their pictures
HELD = "held-out"  # before the names of held-out pictures
LONGEST = 1 << 16  # bytes of a caption
COUNT = re.compile(r"\d+")  # the first number in Pillow's text: how many pixels


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        name: its path inside the folder, with slashes, as text that can be written (memguard.texts.writable).
        path: of the file.
        caption: that it was trained with.
        repeats: how often an epoch shows it.
        width: pixels.
        height: pixels.

    """

    name: str
    path: Path
    caption: str
    repeats: int
    width: int
    height: int


@dataclass(frozen=True)
class Folder:
    """The pictures that can be used, in the order of their names, and one line for each thing that cannot."""

    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]


def read_folder(path: Path) -> Folder:
    """Read a folder and the folders in it.

    A picture's caption is the first line of the .txt or .caption file of its name, else its row of metadata.jsonl, else
    the words of its folder's name where that is ``10_words`` (kohya's rule for pictures without a caption).

    Raises:
        BadInput: for a folder that is not there, or that holds no picture with a caption.

    """
    path = Path(os.path.normpath(path))
    try:
        if not path.is_dir():
            raise BadInput(f"{path}: is no folder; give the folder of the training pictures")
        found = sorted(each for each in path.rglob("*") if each.is_file() and not _hidden(each, path))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from None
    reading = _Reading(path, found)
    pictures = tuple(each for each in map(reading.picture, reading.files) if each is not None)
    reading.unused()
    if not pictures:
        why = f": {reading.notes[0]}" if reading.notes else ""
        raise BadInput(f"{path}: holds no picture with a caption, as .txt beside it or in {METADATA}{why}")
    return Folder(pictures, tuple(reading.notes))


def held_out(folder: Folder) -> Folder:
    """Return a folder of held-out pictures under names that differ from those of the training pictures."""
    pictures = (replace(each, name=f"{HELD}/{each.name}") for each in folder.pictures)
    return Folder(tuple(pictures), tuple(f"{HELD}/{note}" for note in folder.notes))


def pixels(picture: Picture, side: int = 512) -> Image.Image:
    """Return a picture as trainers read it, RGB and turned upright, at most ``side`` pixels wide and high.

    What is transparent keeps the colours under it, as in trainers. Grey of 16 bits keeps its range.

    Raises:
        OSError: if the file is broken, or gone since; ``strerror`` is what is wrong, for a person.

    """
    opened = _decoded(picture.path)
    opened.thumbnail((side, side), Image.Resampling.BOX)
    return opened


def _decoded(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is looked at here
        warnings.simplefilter("ignore", UserWarning)  # palettes with transparency
        try:
            with Image.open(path) as file:
                limit = Image.MAX_IMAGE_PIXELS
                if limit is not None and file.width * file.height > limit:
                    raise _unread(path, f"has too many pixels, {file.width} x {file.height}; the limit is {limit}")
                return eight_bits(ImageOps.exif_transpose(file)).convert("RGB")
        except Image.DecompressionBombError as error:  # Pillow does not even say how wide and high it is
            count = COUNT.search(str(error))
            said = f"has too many pixels{f', {count[0]}' if count else ''}; the limit is {Image.MAX_IMAGE_PIXELS}"
            raise _unread(path, said) from None
        except MemoryError:
            raise
        except Exception as error:  # whatever damaged files make a decoder stumble over
            if isinstance(error, OSError) and error.strerror:
                raise
            raise _unread(path, "is broken: no picture, or damaged or not written to its end") from None


def _unread(path: Path, said: str) -> OSError:
    return OSError(errno.EINVAL, said, str(path))


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.relative_to(root).parts)


class _Reading:
    """What is known while a folder is read."""

    def __init__(self, root: Path, found: list[Path]) -> None:
        self.root, self.notes = root, list[str]()
        self.files = [p for p in found if p.suffix.lower() in PICTURES and not p.stem.endswith(MASK)]
        self.beside = {p for p in found if p.suffix.lower() in CAPTIONS}
        self.rows: dict[Path, str] = {}
        for path in found:
            if path.name == METADATA:
                self._metadata(path)

    def note(self, path: Path, said: str) -> None:
        self.notes.append(shown(f"{path.relative_to(self.root).as_posix()}: {said}"))

    def picture(self, path: Path) -> Picture | None:
        """Return the picture of a file; None, and a note, where it cannot be used."""
        caption = self._caption(path)
        if not caption:
            self.note(path, "has no caption; it is left out") if caption is None else None
            return None
        try:
            width, height = _decoded(path).size
        except OSError as error:
            self.note(path, f"{error.strerror}; it is left out")
            return None
        repeats = REPEATS.fullmatch(path.parent.name)
        name = writable(path.relative_to(self.root).as_posix())
        return Picture(name, path, caption, int(repeats[1][:6]) if repeats else 1, width, height)

    def unused(self) -> None:
        """Note the captions that have no picture."""
        for path in sorted(self.beside):
            self.note(path, "is a caption without a picture; it is left out")
        for path in self.rows:
            self.notes.append(shown(f"{METADATA}: {path.name} is a caption without a picture; it is left out"))

    def _caption(self, path: Path) -> str | None:
        """Return a caption; None where there is none, "" where it was noted what is wrong with it."""
        row = self.rows.pop(path, None)
        # name.txt, or name.png.txt
        beside = [b for s in CAPTIONS for b in (path.with_suffix(s), path.with_name(path.name + s)) if b in self.beside]
        self.beside -= set(beside)
        for each in beside:
            try:
                with each.open(encoding="utf-8-sig", errors="strict") as file:
                    text = file.read(LONGEST)
            except (OSError, ValueError):  # also UnicodeDecodeError
                self.note(each, "is not UTF-8; its picture is left out")
                return ""
            # as trainers do; str.splitlines() would also split at what stands inside a text, such as U+2028
            line = next((line.strip() for line in text.split("\n") if line.strip()), "")
            if line:
                return line
        words = REPEATS.fullmatch(path.parent.name)
        if not row and words and unfit(words[2]):
            self.note(path, "has no caption but its folder's name, which is no text; it is left out")
            return ""
        return row or (words[2].strip() if words and words[2].strip() else None)

    def _metadata(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")  # a text in JSON may hold U+2028 as it is
        except (OSError, ValueError):
            self.note(path, "cannot be read as UTF-8; it is left out")
            return
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row: Any = json.loads(line)
                file = Path(os.path.normpath(path.parent / row["file_name"]))
                file.relative_to(self.root)
            except (ValueError, KeyError, TypeError, RecursionError):
                self.note(path, f"line {number} is no row with a file_name inside the folder; it is left out")
                continue
            text = next((row[name] for name in COLUMNS if row.get(name)), None)
            if text is None or unfit(text):
                self.note(path, f"line {number} has no text, caption or prompt; it is left out")
            else:
                if file in self.rows:
                    self.note(path, f"line {number} is a second row for {row['file_name']}; the last one counts")
                self.rows[file] = " ".join(text.split())
