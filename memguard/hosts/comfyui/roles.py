"""Which prediction belongs to which prompt, and which one is the reference of a score.

A row's index and its uuid both mislead (COMFYUI: DualCFG puts the negative first; areas copy a uuid into the other
role). The list object that the guider hands over does not.

Part of the ComfyUI host.
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

import torch

from ...records import Reference

PROMPT = "positive"
NEGATIVE = "negative"
PERP_EMPTY = "empty_negative_prompt"  # PerpNeg's guider computes it anyway
EMPTY = "memguard_empty"  # our own role; the sampler prepares it with the others


def role_of(conds: Any, guider: Any) -> str | None:
    """Return the guider's name of a list of conditionings, or None."""
    for role, known in guider.conds.items():
        if known is conds:
            return role
    # a guider that copies its lists keeps the uuids in them
    uuids = [c.get("uuid") for c in conds]
    same = [role for role, known in guider.conds.items() if [c.get("uuid") for c in known] == uuids]
    return same[0] if len(same) == 1 else None


def reference(have: Container[str], want: Reference) -> str | None:
    """Return the role to compare the prompt with: the wanted one, else the next best; None if there is none."""
    order = (EMPTY, PERP_EMPTY, NEGATIVE) if want == "empty" else (NEGATIVE, PERP_EMPTY, EMPTY)
    return next((role for role in order if role in have), None)


def same_prompt(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    """Return whether two unprocessed roles are one and the same plain prompt."""
    if len(a) != 1 or len(b) != 1:
        return False
    plain = {"cross_attn", "pooled_output", "model_conds", "uuid", "prompt_type"}
    if not (plain.issuperset(a[0]) and plain.issuperset(b[0])):
        return False
    return all(_equal(a[0].get(key), b[0].get(key)) for key in ("cross_attn", "pooled_output"))


def _equal(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(a, b)


def why_missing(guider: Any, cfg: float | None = None) -> str:
    """Return why a run has no prediction to compare the prompt's with.

    Args:
        guider: of the run.
        cfg: that the run was started with; nodes may change the guider's for some of its calls.

    """
    known = guider.conds
    if PROMPT not in known:
        return f"the guider {type(guider).__name__} has no prompt called positive; it has: {', '.join(known) or 'none'}"
    if NEGATIVE not in known:
        return (
            f"there is no negative prompt (guider {type(guider).__name__}); "
            "set reference to empty and connect an empty prompt to MemGuard"
        )
    if math.isclose(getattr(guider, "cfg2", 0.0), 1.0):
        return (
            f"cfg of the negative prompt is 1 (guider {type(guider).__name__}): the sampler computes no prediction for "
            "it; set reference to empty (one more evaluation), or that cfg above 1"
        )
    if cfg is not None and not math.isclose(cfg, 1.0):
        return (
            f"the first call makes no prediction for the negative prompt although cfg is {cfg:g}: another node leaves "
            "guidance out there; set reference to empty (one more evaluation)"
        )
    return (
        "cfg is 1: the sampler computes no prediction for the negative prompt; "
        "set reference to empty (one more evaluation), or cfg above 1"
    )
