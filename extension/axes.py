"""MemGuard's axes of the X/Y/Z plot."""

from __future__ import annotations

from typing import Any

from modules import scripts

from ..memguard.hosts.webui.settings import KNOWN
from .controls import CHANGED

PREFIX = "[MemGuard] "


def add() -> None:
    """Add the axes, once; the plot's script is there before an extension's."""
    plot = next((each.module for each in scripts.scripts_data if each.script_class.__module__ == "xyz_grid.py"), None)
    if plot is None or any(option.label.startswith(PREFIX) for option in plot.axis_options):
        return
    plot.axis_options += [
        plot.AxisOption(f"{PREFIX}policy", str, _change("policy"), choices=_choices("policy")),
        plot.AxisOption(f"{PREFIX}sensitivity", float, _change("sensitivity")),
        plot.AxisOption(
            f"{PREFIX}mitigation", str, _change("mitigation"), choices=lambda: list(KNOWN["mitigation"].choices)
        ),
        plot.AxisOption(f"{PREFIX}strength", float, _change("strength")),
    ]


def _choices(name: str) -> Any:
    return lambda: list(KNOWN[name].choices)


def _change(name: str) -> Any:
    def apply(p: Any, value: Any, values: Any) -> None:
        setattr(p, CHANGED, {**getattr(p, CHANGED, {}), name: value})

    return apply
