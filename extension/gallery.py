"""Overlays: small ones for the panel, and large ones in the gallery where the settings ask for them."""

from __future__ import annotations

import logging
from typing import Any

from modules import shared

from ..memguard.hosts.webui import pictures
from ..memguard.hosts.webui.session import Session
from . import options

log = logging.getLogger("memguard")


def draw(session: Session, first: int, made: Any) -> None:
    """Draw the overlays of a batch; whatever goes wrong costs no picture.

    Args:
        session: whose passes are over.
        first: number of the batch's first report.
        made: pictures of the batch, [B, 3, H, W], 0..1; None where the host tells none.

    """
    if made is None or not len(made) or not any(session.maps[first:]):
        return
    try:
        pictures.draw(session, first, made)
        show = getattr(shared.opts, options.OVERLAY, pictures.NONE)
        if show in pictures.SHOWN:
            session.overlays += pictures.full(session, first, made, show)
    except Exception as error:
        log.warning("no overlay: %s", error)
    finally:
        for maps in session.maps[first:]:
            maps.clear()


def add(session: Session, processed: Any) -> None:
    """Add the large overlays behind a generation's pictures."""
    for legend, picture in session.overlays:
        processed.images.append(picture)
        processed.infotexts.append(f"MemGuard overlay: {legend}")
    session.overlays.clear()
