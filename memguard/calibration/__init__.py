"""Profiles: what ordinary prompts score on a checkpoint, and the verdict that follows.

May import: memguard.records, memguard.detectors, torch, numpy.
"""

from .fingerprint import fingerprint
from .judge import judge, ordinary
from .profile import Conditions, Distribution, Profile, ProfileError, Sensitivity, fit
from .prompts import ordinary_prompts
from .store import find, folders, save

__all__ = [
    "Conditions",
    "Distribution",
    "Profile",
    "ProfileError",
    "Sensitivity",
    "find",
    "fingerprint",
    "fit",
    "folders",
    "judge",
    "ordinary",
    "ordinary_prompts",
    "save",
]
