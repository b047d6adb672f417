"""MemGuard: does my prompt copy somebody's picture?

``import memguard`` is the door for diffusers pipelines. Names that need a host's libraries are loaded when used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .guard import Guard, MemorizationStop
from .records import Finding, Report
from .version import VERSION as __version__

if TYPE_CHECKING:
    from .hosts.diffusers import attach, calibrate, scan

_LAZY = {"attach": ".hosts.diffusers", "scan": ".hosts.diffusers", "calibrate": ".hosts.diffusers"}

__all__ = ["Finding", "Guard", "MemorizationStop", "Report", "__version__", "attach", "calibrate", "scan"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
