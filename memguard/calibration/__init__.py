"""Profiles: what ordinary prompts score on a checkpoint, and the verdict that follows.

May import: memguard.records, torch, numpy.
"""

from .fingerprint import fingerprint
from .judge import judge
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
    "ordinary_prompts",
    "save",
]
