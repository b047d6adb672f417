"""The ordinary prompts that a profile is made from. Written for this package; none is known to be memorized."""

from __future__ import annotations

from importlib import resources


def ordinary_prompts() -> list[str]:
    """Return the shipped prompts, one per line of ``ordinary.txt``."""
    text = resources.files(__package__).joinpath("ordinary.txt").read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]
