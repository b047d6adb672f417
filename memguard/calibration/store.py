"""Where profiles lie, and how one is found for a run.

May import: memguard.calibration.profile.
"""

from __future__ import annotations

import logging
import math
import os
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from .profile import Profile, ProfileError

log = logging.getLogger("memguard")

_registered: list[Path] = []


def home() -> Path:
    """Return the folder that ``memguard calibrate`` writes to: MEMGUARD_HOME, or .memguard in the user's home."""
    return Path(os.environ.get("MEMGUARD_HOME") or Path.home() / ".memguard")


def register(folder: str | Path) -> None:
    """Add a folder of profiles; a host registers its own (ComfyUI: models/memguard)."""
    path = Path(folder)
    if path not in _registered:
        _registered.insert(0, path)


def folders() -> list[Path]:
    """Return the folders that are searched, first match first."""
    shipped = Path(str(resources.files(__package__))) / "profiles"
    return [*_registered, home() / "profiles", shipped]


def save(profile: Profile, folder: str | Path | None = None) -> Path:
    """Write a profile under a name made of its conditions and return the path."""
    c = profile.conditions
    target = Path(folder) if folder else home() / "profiles"
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{c.model}-{c.latent[0]}x{c.latent[1]}-{c.reference}-s{c.steps_scored}-{c.sigma:.3g}.json"
    part = path.with_suffix(".part")
    part.write_text(profile.to_json() + "\n", encoding="utf-8")
    part.replace(path)
    return path


@lru_cache(maxsize=256)
def _read(path: Path, _modified: float) -> Profile | None:
    try:
        return Profile.read(path)
    except ProfileError as error:
        log.warning("%s", error)  # once per version of the file
        return None


def find(have: dict[str, Any], latent: tuple[int, int], detector: str) -> Profile | None:
    """Return the profile that holds for a run, or None.

    Args:
        have: model fingerprint, sigma, steps_scored, reference.
        latent: height and width; of several profiles the nearest in area wins.
        detector: that the profile must know.

    """
    fitting = []
    for order, profile in enumerate(of_model(have["model"])):
        if detector in profile.distributions and profile.mismatch(have) is None:
            height, width = profile.conditions.latent
            distance = abs(math.log(height * width / (latent[0] * latent[1])))
            fitting.append((distance, order, profile))
    return min(fitting, key=lambda row: row[:2])[2] if fitting else None


def of_model(model: str) -> list[Profile]:
    """Return every readable profile of a checkpoint, in the order of the folders; none for an unknown model."""
    paths = [path for folder in folders() for path in sorted(folder.glob(f"{model}-*.json"))] if model else []
    profiles = (_read(path, path.stat().st_mtime) for path in paths)
    return [profile for profile in profiles if profile is not None]
