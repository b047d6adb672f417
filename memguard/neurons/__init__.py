"""Value neurons that carry a memorized picture: find them and keep them in files.

The method is NeMo (Hintersdorf et al., NeurIPS 2024).

``statistics``, ``select``, ``noise_difference``, ``localize`` and ``calibrate`` work on diffusers pipelines and are
reached through memguard's door; everything else here knows no host. Another host implements ``probe.Probe`` and
calls ``localizing.search``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .activations import ActivationStatistics
    from .evaluation import Progress
    from .files import check, diff, load, merge, save
    from .nemo import read_csv

_LAZY = {
    "ActivationStatistics": ".activations",
    "Progress": ".evaluation",
    "check": ".files",
    "diff": ".files",
    "load": ".files",
    "merge": ".files",
    "read_csv": ".nemo",
    "save": ".files",
}
_HOSTED = ("calibrate", "localize", "noise_difference", "select", "statistics")

__all__ = [
    "ActivationStatistics",
    "Progress",
    "check",
    "diff",
    "load",
    "merge",
    "read_csv",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _HOSTED:
        from .. import neuron_host

        return getattr(neuron_host, name)
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
