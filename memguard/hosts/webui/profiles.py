"""Profiles and neuron sets as the WebUIs' users keep them: files below models/memguard, as in ComfyUI.

Part of the WebUI hosts.
"""

from __future__ import annotations

from pathlib import Path

from ...calibration import store

FOLDER = "memguard"


def register(models: str) -> Path:
    """Make models/memguard known to the search for profiles, and return it; it need not exist."""
    folder = Path(models) / FOLDER
    store.register(folder)
    return folder


def trouble(folder: Path) -> tuple[str, ...]:
    """Return why nothing is found in a folder though it is there; nothing where all is well, or it is not there."""
    if folder.is_dir() or not folder.exists():
        return ()
    return (f"{folder} is a file and no folder, so no profile and no neuron set is found there; move it away",)
