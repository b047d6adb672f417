"""Profiles as the WebUIs' users keep them: JSON files below models/memguard, as in ComfyUI.

Part of the WebUI hosts; may import: memguard's core.
"""

from __future__ import annotations

from pathlib import Path

from ...calibration import store

FOLDER = "memguard"


def register(models: str) -> None:
    """Make models/memguard known to the search for profiles; it need not exist."""
    store.register(Path(models) / FOLDER)
