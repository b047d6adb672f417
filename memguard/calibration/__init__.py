"""Profiles: what ordinary prompts score on a checkpoint, and the verdict that follows."""

from .conditions import Conditions, Have, negative_of
from .fingerprint import fingerprint
from .judge import judge, ordinary, together
from .profile import Distribution, Profile, ProfileError, Sensitivity, fit
from .prompts import ordinary_prompts
from .store import find, folders, save

__all__ = [
    "Conditions",
    "Distribution",
    "Have",
    "Profile",
    "ProfileError",
    "Sensitivity",
    "find",
    "fingerprint",
    "fit",
    "folders",
    "judge",
    "negative_of",
    "ordinary",
    "ordinary_prompts",
    "save",
    "together",
]
