"""ComfyUI inside this process, on the CPU. The folder of its source comes from COMFYUI_ROOT."""

import logging
import os
import sys
from pathlib import Path

REASON = "COMFYUI_ROOT is not set; give it the folder of a ComfyUI and run with a Python that has its requirements"


def root() -> Path | None:
    """Return ComfyUI's folder, or None where there is none to test against."""
    folder = os.environ.get("COMFYUI_ROOT")
    return Path(folder).resolve() if folder else None


def enter() -> None:
    """Make ComfyUI importable; its own ``nodes`` must come before this repository's folder of that name."""
    folder = str(root())
    if folder in sys.path:
        return
    sys.path.insert(0, folder)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True  # read when comfy.model_management is imported
    logging.getLogger().setLevel(logging.WARNING)
