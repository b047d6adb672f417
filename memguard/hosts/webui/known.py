"""The WebUIs' memory of known prompts: one file below their data folder, like ComfyUI's.

Part of the WebUI hosts.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ...memory import PromptMemory

FOLDER, FILE = "memguard", "prompts.sqlite3"


@lru_cache(maxsize=1)
def memory(data: str) -> PromptMemory:
    """Return the memory below a data folder."""
    return PromptMemory(Path(data) / FOLDER / FILE)
