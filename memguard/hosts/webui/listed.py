"""What is kept below models/memguard, as HTML for the MemGuard tab. All text is escaped.

Part of the WebUI hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...calibration import Profile
from ...memory import Facts
from ...pages import rendered
from .settings import files

HEADINGS = ("Size", "Compared with", "Ordinary prompts", "File", "Note")
PIXELS = 8  # of a latent


def profiles(model: str, found: Sequence[Profile], loaded: str = "", chosen: str = "") -> str:
    """Return the table of a checkpoint's profiles, or why there is none.

    Args:
        model: fingerprint, "" where no checkpoint is loaded.
        found: its profiles.
        loaded: its name.
        chosen: name of the checkpoint that is chosen on the page; it may not be loaded yet.

    """
    if not model:
        return line("No checkpoint is loaded yet.")
    if loaded and chosen and loaded != chosen:
        return line(f"{chosen} is chosen and not loaded yet. Once it is, press Refresh to see its profiles.")
    of = loaded or "this checkpoint"
    if not found:
        return line(f"There is no profile for {of}.")
    return rendered("profiles.html", name=of, headings=HEADINGS, rows=map(_cells, found))


def _cells(profile: Profile) -> tuple[str, ...]:
    height, width = profile.conditions.latent
    images = profile.conditions.images
    counts = sorted({each.count for each in profile.distributions.values()})
    return (
        f"{width * PIXELS}x{height * PIXELS}",
        f"{profile.conditions.reference} prompt",
        ", ".join(map(str, counts)) + (f", {images} images each" if images > 1 else ""),
        Path(profile.source).name,
        profile.note,
    )


def neuron_sets(folder: str | Path) -> str:
    """Return the list of the neuron-set files below a folder."""
    names = files(Path(folder), ".safetensors")
    if not names:
        return line("There are no neuron sets.")
    return rendered("lines.html", lines=(), items=names)


def memory(facts: Facts) -> str:
    """Return how many runs are remembered, and what hinders it."""
    held = "1 run is remembered." if facts.rows == 1 else f"{facts.rows} runs are remembered."
    return line(held if facts.status == "ok" else f"{held} {facts.status}")


def line(text: str) -> str:
    """Return a line of text."""
    return rendered("lines.html", lines=(text,), items=())
