"""Maps of a batch's passes laid over its pictures.

Part of the WebUI hosts.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image
from torch import Tensor

from ...overlay import overlay
from ...records import Report
from .session import Session

NONE = "none"
SHOWN = {"end of prompt": "bright_ending", "noise gap": "noise_gap", "strongest word": "word"}  # by what users read
LEGENDS = {"bright_ending": "end of prompt, last step", "noise_gap": "noise gap, last step"}
THUMBNAIL = 320  # pixels on the longer side
WORD = "word "


def draw(session: Session, first: int, pictures: Tensor) -> None:
    """Make the small overlays of a batch's passes, of the first picture.

    Args:
        session: whose passes are over.
        first: number of the batch's first report.
        pictures: of the batch, [B, 3, H, W], 0..1.

    """
    for number in range(first, len(session.reports)):
        maps, report = session.maps[number], session.reports[number]
        if maps:
            picture = _pixels(pictures[0])
            session.pictures[number] = [
                (legend, _data_url(overlay(picture, heat, legend=None)))
                for legend, heat in (_chosen(report, maps, name, 0) for name in SHOWN.values())
                if heat is not None
            ]


def full(session: Session, first: int, pictures: Tensor, show: str) -> list[tuple[str, Image.Image]]:
    """Return the overlays of a batch in the pictures' size, with what each shows.

    Args:
        session: whose passes are over.
        first: number of the batch's first report.
        pictures: of the batch, [B, 3, H, W], 0..1.
        show: a key of ``SHOWN``.

    """
    found = []
    for number in range(first, len(session.reports)):
        for image, picture in enumerate(pictures):
            legend, heat = _chosen(session.reports[number], session.maps[number], SHOWN[show], image)
            if heat is not None:
                found.append((legend, Image.fromarray(overlay(_pixels(picture), heat, legend=legend))))
    return found


def _chosen(report: Report, maps: Mapping[str, Tensor], show: str, image: int) -> tuple[str, np.ndarray | None]:
    """Return what a map shows, and the map of an image; None where there is none."""
    name, legend = show, LEGENDS.get(show, "")
    if show == "word" and report.attribution is not None:
        known = [i for i in range(len(report.attribution.spans)) if f"{WORD}{i}" in maps]
        strongest = max(known, key=lambda i: report.attribution.weights[i], default=None)  # type: ignore[union-attr]
        if strongest is not None:
            name, legend = f"{WORD}{strongest}", f'word "{report.attribution.spans[strongest].text}"'
    found = maps.get(name)
    return legend, None if found is None or image >= len(found) else found[image].numpy()


def _pixels(picture: Tensor) -> np.ndarray:
    return (picture.detach().float().clamp(0, 1).movedim(0, -1).cpu().numpy() * 255).round().astype(np.uint8)


def _data_url(picture: np.ndarray) -> str:
    small = Image.fromarray(picture)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
