"""Ways to reduce memorization: one file each, all built with ``get``.

Every run, memorized or not, or only runs that look memorized::

    mitigation = memguard.mitigations.get("attention_scaling", bos_scale=1.25)
    with mitigation.attach(pipe):
        pipe(prompt)
    guard = memguard.Guard(policy="mitigate", mitigation=mitigation)
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any

from ..troubles import Refused
from .base import Mitigation, Treatment, Unsuitable

__all__ = ["Mitigation", "Treatment", "Unsuitable", "available", "describe", "get", "optimize_prompt", "parameters"]

# as lists show them; what is not named here comes behind
ORDER = (
    "attention_scaling",
    "spike_attenuation",
    "padding",
    "guidance_delay",
    "neuron_mask",
    "prompt_optimization",
    "noise_adjustment",
    "guard",
    "paraphrase",
    "random_tokens",
    "local_guidance",
)


@lru_cache(maxsize=1)
def _known() -> dict[str, type[Mitigation]]:
    """Return every mitigation in this folder by name."""
    found: dict[str, type[Mitigation]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
        found |= {each.NAME: each for each in own if issubclass(each, Mitigation) and each is not Mitigation}
    rank = {name: place for place, name in enumerate(ORDER)}
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[0], len(ORDER)), item[0])))


def available() -> tuple[str, ...]:
    """Return the names of all mitigations."""
    return tuple(_known())


def parameters(name: str) -> dict[str, Any]:
    """Return the parameters of a mitigation with their defaults."""
    return {f.name: f.default if f.default is not MISSING else None for f in fields(kind(name)) if f.name != "neurons"}


def describe(name: str) -> str:
    """Return title and source of a mitigation."""
    cls = kind(name)
    return f"{cls.TITLE} ({cls.SOURCE})"


def get(name: str, /, **settings: Any) -> Mitigation:
    """Return a mitigation.

    Args:
        name: one of ``available()``.
        settings: its parameters; ``strength`` (0 to 1) and ``parity`` (None or "official") are known to all.

    Raises:
        ValueError: for an unknown name or parameter, or a value out of range.

    """
    cls = kind(name)
    known = [f.name for f in fields(cls)]
    for setting in settings:
        if setting not in known:
            raise Refused(f"{name} has no parameter {setting!r}; it has {', '.join(known)}")
    return cls(**settings)


def kind(name: str) -> type[Mitigation]:
    """Return the class of a mitigation, whose fields are its settings."""
    try:
        return _known()[name]
    except (KeyError, TypeError):
        raise Refused(f"there is no mitigation {name!r}; use one of {', '.join(available())}") from None


def __getattr__(name: str) -> Any:
    if name == "optimize_prompt":
        from .. import optimize_prompt  # the door to the hosts; the core imports none

        return optimize_prompt
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
