"""MemGuard: does my prompt copy somebody's picture?

``import memguard`` is the door for diffusers pipelines. Every name is loaded when it is used: torch with the guard, so
that ``memguard --help`` answers at once, and a host's libraries with the names that need them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import VERSION as __version__

if TYPE_CHECKING:
    from . import mitigations, neurons, training
    from .guard import Guard, MemorizationStop
    from .hosts.diffusers import attach, calibrate, explain, optimize_prompt, prescan, scan, treat
    from .records import Attribution, Finding, Report

_LAZY = {
    "Attribution": ".records",
    "Finding": ".records",
    "Guard": ".guard",
    "MemorizationStop": ".guard",
    "Report": ".records",
    "attach": ".hosts.diffusers",
    "calibrate": ".hosts.diffusers",
    "explain": ".hosts.diffusers",
    "optimize_prompt": ".hosts.diffusers",
    "prescan": ".hosts.diffusers",
    "scan": ".hosts.diffusers",
    "treat": ".hosts.diffusers",
}
_MODULES = {
    "mitigations": ".mitigations",
    "neurons": ".neurons",
    "training": ".training",
    # for memguard.neurons and memguard.training: the core reaches a host through this door only
    "neuron_host": ".hosts.diffusers.neurons",
    "training_host": ".hosts.diffusers.attention",
}

__all__ = [
    "Attribution",
    "Finding",
    "Guard",
    "MemorizationStop",
    "Report",
    "__version__",
    "attach",
    "calibrate",
    "explain",
    "mitigations",
    "neurons",
    "optimize_prompt",
    "prescan",
    "scan",
    "training",
    "treat",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    if name in _MODULES:
        return importlib.import_module(_MODULES[name], __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
