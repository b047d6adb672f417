"""What other nodes change of a model beside its weights: the checkpoint's profile does not hold for what then samples.

A LoRA is named and judged by the checkpoint's profile. A merge is another model, and functions inside the network
(Deep Shrink, NAG, FreeU, a wrapper around its calls) make another one of it: both get a name of their own, under which
a profile is found that was made with them. What cannot be told apart by its settings is like nothing else.

Part of the ComfyUI host.
"""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from ...calibration import fingerprint
from .calls import CACHES, COMPILED

OURS = "memguard"
# of the model's calls; what stands around a run or a step changes no prediction
AROUND = ("apply_model", "diffusion_model", "calc_cond_batch")
SINGLE = "model_function_wrapper", "sampler_calc_cond_batch_function"
SAME = ("model_sampling", "diffusion_model")  # objects whose change shows in sigma, or is a compiled network
REMARK = "other nodes change what samples ({}): the checkpoint's profile does not hold, calibrate the model as it is"
MERGED = "a merge of weights"
SEEN = 64  # values of a closure that are looked at


def changes(patcher: Any) -> tuple[str, ...]:
    """Return what changes the predictions of a model, one line each."""
    found = {f"{name}: {_title(function)}": None for name, function in _functions(patcher)}
    if _merged(patcher):
        found[MERGED] = None
    return tuple(found)


def named(base: str, patcher: Any) -> str:
    """Return the name of what samples: the checkpoint's own where nothing changes its predictions."""
    facts = [f"{name} {_describe(function)}" for name, function in _functions(patcher)]
    merged = _merged(patcher)
    if merged:
        shares = sorted({(float(patch[0]), float(patch[2])) for patch in merged})
        facts.append(f"{MERGED} {shares} {fingerprint(_tensors(merged))}")
    if not facts:
        return base
    return f"{base}+{hashlib.sha256('|'.join(sorted(facts)).encode()).hexdigest()[:8]}"


def hooked(conds: Iterable[Any]) -> int:
    """Return the number of weights that a LoRA on a prompt (a hook) changes."""
    weights: set[Any] = set()
    for cond in conds:
        group = cond.get("hooks")
        for hook in () if group is None else group.hooks:
            weights |= {str(key) for key in getattr(hook, "weights", None) or ()}
    return len(weights)


def _merged(patcher: Any) -> list[Any]:
    """Return the patches that put weights of another model in place of a share of this one's: a LoRA leaves all."""
    return [patch for patches in patcher.patches.values() for patch in patches if len(patch) > 2 and patch[2] != 1.0]


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _functions(patcher: Any) -> Iterator[tuple[str, Any]]:
    options = patcher.model_options
    transformer = options.get("transformer_options", {})
    for name in SINGLE:
        if options.get(name) is not None:
            yield name, options[name]
    for name, functions in transformer.get("patches", {}).items():
        yield from ((name, function) for function in functions)
    for name, by_place in transformer.get("patches_replace", {}).items():
        yield from ((name, function) for function in by_place.values())
    for kind in AROUND:
        for key, functions in patcher.wrappers.get(kind, {}).items():
            if not str(key).startswith(OURS) and key not in (*CACHES, COMPILED):
                yield from ((kind, function) for function in functions)
    for name, value in patcher.object_patches.items():
        if name not in SAME:
            yield name, value


def _title(function: Any) -> str:
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__).replace(".<locals>", "")
    return f"{name} of {str(getattr(function, '__module__', '')).rsplit('.', 1)[-1]}"


def _describe(value: Any, depth: int = 4) -> str:
    """Return a text that is equal for equal settings of a function of another node."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if depth and isinstance(value, list | tuple | set) and len(value) <= SEEN:
        return f"[{','.join(_describe(each, depth - 1) for each in value)}]"
    if depth and isinstance(value, dict) and len(value) <= SEEN:
        return f"{{{','.join(f'{key!r}:{_describe(each, depth - 1)}' for key, each in value.items())}}}"
    if depth and isinstance(value, partial):
        return _describe((value.func, list(value.args), value.keywords), depth - 1)
    if depth and isinstance(value, types.MethodType):
        return f"{_title(value)} {_describe(vars(value.__self__), depth - 1)}"
    if depth and isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        return f"{_title(value)} {_describe(cells, depth - 1)} {_describe(value.__defaults__, depth - 1)}"
    if isinstance(value, type | types.ModuleType):
        return value.__name__
    return f"{type(value).__name__} {id(value)}"  # tensors, models: like nothing else, and of this session only


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
