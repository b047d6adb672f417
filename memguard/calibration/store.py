"""Where profiles lie, and how one is found for a run."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from importlib import resources
from pathlib import Path

from .conditions import Have
from .profile import OldProfile, Profile, ProfileError

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
    target = Path(folder) if folder else home() / "profiles"
    target.mkdir(parents=True, exist_ok=True)
    path = target / f"{profile.conditions.stem}.json"
    part = target / f"{profile.conditions.stem}.part"
    part.write_text(profile.to_json() + "\n", encoding="utf-8")
    part.replace(path)
    return path


@lru_cache(maxsize=256)
def _read(path: Path, _modified: float) -> Profile | ProfileError:
    try:
        return Profile.read(path)
    except ProfileError as error:
        log.warning("%s", error)  # once per version of the file
        return error


def find(have: Have, detector: str) -> Profile | None:
    """Return the profile that holds for a run, or None; of several the nearest, of equal ones the first.

    Args:
        have: what is known of the run.
        detector: that the profile must know.

    """
    fitting = [each for each in of_model(have.model) if detector in each.distributions and not each.mismatch(have)]
    return min(fitting, key=lambda profile: profile.conditions.distance(have), default=None)


def why_not(have: Have, detector: str) -> str:
    """Return the one difference of the nearest profile; one of the same reference is nearer than any other."""
    near = [each.conditions for each in of_model(have.model) if detector in each.distributions]
    if near:
        nearest = min(near, key=lambda c: (c.reference != have.reference, len(c.differences(have)), c.distance(have)))
        return nearest.differences(have)[0]
    if of_model(have.model):
        return f"the profile has no {detector}"
    if not have.model:
        return "the model's weights cannot be read, so no profile is known to be of them; choose one by its file"
    if any(isinstance(each, OldProfile) for each in _all(have.model)):
        return "this model's profile was made by an older version of MemGuard; calibrate again"
    return "no profile for this model; run memguard calibrate"


def of_model(model: str) -> list[Profile]:
    """Return every readable profile of a checkpoint, in the order of the folders; none for an unknown model."""
    return [profile for profile in _all(model) if isinstance(profile, Profile)]


def _all(model: str) -> list[Profile | ProfileError]:
    paths = [path for folder in folders() for path in sorted(folder.glob(f"{model}-*.json"))] if model else []
    return [_read(path, _modified(path)) for path in paths]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # a link to nowhere: reading it says so
