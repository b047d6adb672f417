"""Pictures from files, as they are seen: turned as their EXIF data says, on white where they are transparent."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..troubles import Refused
from .depth import grey, is_deep

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"))
DRAFT = 256  # pixels of a side from which JPEG files may be decoded smaller
MOST = (1 << 28) // 3  # pixels: a quarter of a GiB as 8-bit RGB, from where on Pillow warns of a bomb


def files_of(folder: Path) -> list[Path]:
    """Return the pictures of a folder and of its folders, sorted; hidden ones are left out.

    Raises:
        Refused: if there is no such folder, or it cannot be read.

    """
    if not folder.is_dir():
        raise Refused(f"{folder}: no such folder of pictures")
    try:
        return sorted(_found(folder))
    except OSError as error:
        raise Refused(f"{error.filename or folder}: cannot be read ({error.strerror})") from None


def _found(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir() and not entry.is_symlink():  # links to folders may lead in circles
            yield from _found(entry)
        elif entry.suffix.lower() in SUFFIXES and entry.is_file():
            yield entry


def read(path: Path, whole: bool = False) -> Tensor:
    """Return a picture, float32 [1, 3, H, W] in 0..1; of an animation the first.

    Args:
        path: of the file.
        whole: whether a large JPEG file is decoded at its full size; an eighth of it is enough for thumbnails.

    Raises:
        Refused: one line that names the file, if it is no picture, damaged, or too large.

    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's advice about odd metadata and large files
            with Image.open(path) as image:
                if not whole:
                    image.draft(None, (DRAFT, DRAFT))
                elif math.prod(image.size) > MOST:
                    image.draft(None, (image.width // 2, image.height // 2))
                if math.prod(image.size) > MOST:  # few bytes of a file may be gigabytes of pixels
                    size = f"{image.width} x {image.height} pixels"
                    raise Refused(f"{path}: has {size}, and at most {MOST / 1e6:.0f} million are read; make it smaller")
                return tensor(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise Refused(f"{path}: no such picture") from None
    except Image.DecompressionBombError:
        raise Refused(f"{path}: has more than {2 * MOST / 1e6:.0f} million pixels; make it smaller") from None
    except (Refused, MemoryError):
        raise
    except OSError as error:  # also UnidentifiedImageError
        raise Refused(f"{path}: cannot be read ({error.strerror or 'no picture, or damaged'})") from None
    except Exception:  # whatever damaged files make a decoder stumble over
        raise Refused(f"{path}: cannot be read (no picture, or damaged)") from None


def tensor(image: Image.Image) -> Tensor:
    """Return an image as float32 [1, 3, H, W] in 0..1."""
    if is_deep(image):
        return torch.from_numpy(grey(image)[None].repeat(3, 0))[None]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    values = np.array(image.convert("RGB"), dtype=np.float32)
    values /= 255  # in place: it may be a gigabyte
    return torch.from_numpy(values).permute(2, 0, 1)[None]
