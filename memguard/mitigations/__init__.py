"""Ways to reduce memorization: one file each, all built with ``get``.

    mitigation = memguard.mitigations.get("attention_scaling", bos_scale=1.25)
    with mitigation.attach(pipe):  # every run, memorized or not
        pipe(prompt)
    guard = memguard.Guard(policy="mitigate", mitigation=mitigation)  # only runs that look memorized

May import: memguard.mitigations.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

from ..troubles import Refused
from .attention_scaling import AttentionScaling
from .base import Mitigation, Treatment, Unsuitable
from .guidance_delay import GuidanceDelay
from .local_guidance import LocalGuidance
from .neuron_mask import NeuronMask
from .noise_adjustment import NoiseAdjustment
from .padding import Padding
from .paraphrase import Paraphrase
from .prompt_optimization import PromptOptimization
from .random_tokens import RandomTokens
from .spike_attenuation import SpikeAttenuation
from .three_rows import ThreeRows

__all__ = ["Mitigation", "Treatment", "Unsuitable", "available", "describe", "get", "optimize_prompt", "parameters"]

_KNOWN: tuple[type[Mitigation], ...] = (
    AttentionScaling,
    SpikeAttenuation,
    Padding,
    GuidanceDelay,
    NeuronMask,
    PromptOptimization,
    NoiseAdjustment,
    ThreeRows,
    Paraphrase,
    RandomTokens,
    LocalGuidance,
)


def available() -> tuple[str, ...]:
    """Return the names of all mitigations."""
    return tuple(cls.NAME for cls in _KNOWN)


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
    for cls in _KNOWN:
        if name == cls.NAME:
            return cls
    raise Refused(f"there is no mitigation {name!r}; use one of {', '.join(available())}")


def __getattr__(name: str) -> Any:
    if name == "optimize_prompt":
        from .. import optimize_prompt  # the door to the hosts; the core imports none

        return optimize_prompt
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
