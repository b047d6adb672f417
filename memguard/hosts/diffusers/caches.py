"""Caches between steps: an evaluation of ours neither answers from them nor writes to them.

Known: the caches of diffusers itself (first block, pyramid attention broadcast, FasterCache, TaylorSeer, MagCache and
others). Their state is put away, so that the model computes everything, and put back afterwards. Other packs keep
theirs in attributes of the model (TeaCache and its kin count calls there) or behind a forward of their own (DeepCache):
that is seen, the attributes are put back, and there is a reason in the place of a number.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...aside import aside
from ...attributions.lean import lean
from ...troubles import NoGradient
from .rows import Unscored

CACHED = "the model's cache between steps is on, and gradients cannot pass it; call disable_cache()"
OFF = "a cache between steps; turn it off to have this run scored or mitigated"
ANSWERED = f"the model predicts the same for other input: the prompt does not act on it, or it answers from {OFF}"
COUNTS = f"the model keeps {{}} between its calls, as {OFF}"
STANDS = f"{{}} stands in the place of the model's own forward and keeps something between calls, as {OFF}"
WRAPPERS = ("_hf_hook", "_diffusers_hook")  # of accelerate and diffusers; they stand there for good reasons


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Let a model compute without its caches for the time of the block, and leave them as they were.

    Raises:
        Unscored: if something is kept between calls that is not known.

    """
    plain = getattr(module, "_orig_mod", module)
    _refuse_wrapper(plain)
    parts = list(plain.modules())
    before = [dict(vars(part)) for part in parts]
    put_away = [(hook, name, getattr(hook, name)) for part in parts for hook, name in _states(part)]
    fresh: dict[int, Any] = {}
    try:
        for hook, name, state in put_away:
            setattr(hook, name, fresh.setdefault(id(state), _fresh(state)))
        yield
    finally:
        for hook, name, state in put_away:
            setattr(hook, name, state)
        kept = {name for part, known in zip(parts, before, strict=True) for name in _restored(vars(part), known)}
    if kept:
        raise Unscored(COUNTS.format(", ".join(sorted(kept)[:3])))


@contextmanager
def differentiable(module: nn.Module, held: Sequence[Tensor] = ()) -> Iterator[int]:
    """Let gradients through a model in little memory, see ``lean``; it leaves random generators as they are.

    Raises:
        NoGradient: if one of diffusers' caches is on: blocks that are computed again would find it changed.

    """
    if any(True for part in module.modules() for _ in _states(part)):
        raise NoGradient(CACHED)
    with aside(module), lean(module, held) as blocks:
        yield blocks


def _states(part: nn.Module) -> Iterator[tuple[Any, str]]:
    """Return where the hooks of diffusers on a module hold their state: hook and attribute."""
    registry = getattr(part, "_diffusers_hook", None)
    for hook in getattr(registry, "hooks", {}).values():
        for name, value in vars(hook).items():
            if hasattr(value, "_state_cache") or (name == "state" and hasattr(value, "reset")):
                yield hook, name


def _fresh(state: Any) -> Any:
    """Return such a state as it is before the first step."""
    new = copy.copy(state)
    if not hasattr(new, "_state_cache"):
        new.reset()
        return new
    new._state_cache = {}
    if getattr(new, "_context", "") is None:  # beside a run no pipeline says whose call it is
        new.set_context(getattr(sys.modules[type(new).__module__], "CacheContext", str)("memguard"))
    return new


def _restored(now: dict[str, Any], known: dict[str, Any]) -> Iterator[str]:
    """Put the attributes of a module back; yield the names of those that hold what is kept from call to call."""
    for name in [name for name in now if name not in known or now[name] is not known[name]]:
        if name in known and _differs(known[name], now[name]):
            yield name
        if name in known:
            now[name] = known[name]
        else:
            del now[name]


def _differs(before: Any, after: Any) -> bool:
    """Whether a counter has counted or a kept tensor holds other values; what is made once and moved is neither."""
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return before.shape != after.shape or not torch.equal(before, after.to(before))
    return type(before) in (int, float) and type(after) in (int, float) and before != after


def _refuse_wrapper(plain: nn.Module) -> None:
    forward = vars(plain).get("forward")
    if forward is None or any(hasattr(plain, name) for name in WRAPPERS):
        return
    held = [cell.cell_contents for cell in getattr(forward, "__closure__", None) or ()]
    held += [getattr(forward, "__self__", None), *getattr(forward, "args", ())]
    if any(not (each is None or callable(each) or isinstance(each, str | int | float)) for each in held):
        raise Unscored(STANDS.format(getattr(forward, "__module__", None) or type(forward).__name__))
