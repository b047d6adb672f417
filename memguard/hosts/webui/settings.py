"""From the accordion's controls to a guard. Part of the WebUI hosts; may import: memguard's core."""

from __future__ import annotations

from ...guard import Guard
from ...mitigations import available, get

POLICIES = ("observe", "warn", "stop", "mitigate")
AUTO = "auto"
MITIGATIONS = (AUTO, *(name for name in available() if name not in ("neuron_mask", "paraphrase")))


def guard_of(policy: str, sensitivity: float, steps: int = 1, mitigation: str = AUTO, strength: float = 1.0) -> Guard:
    """Return the guard of a generation. Mitigation and strength count under policy "mitigate" only.

    Raises:
        ValueError: for a setting out of range.

    """
    if policy not in POLICIES:
        raise ValueError(f"policy is {policy!r}; use one of {', '.join(POLICIES)}")
    chosen = None
    if policy == "mitigate" and mitigation != AUTO:
        chosen = get(mitigation, strength=strength)
    return Guard(policy=policy, sensitivity=sensitivity, steps=steps, mitigation=chosen)  # type: ignore[arg-type]
