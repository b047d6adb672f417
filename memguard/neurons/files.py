"""The NeuronSet file, and whether a set fits a model.

safetensors: one int32 tensor of sorted indices per layer; scale, fingerprint, provenance and scores in the
metadata.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ..records import NeuronSet
from ..troubles import Refused
from . import tensors

KIND = "memguard-neuron-set"
SCHEMA = 1
HIGHEST = 2**31 - 1  # index


def save(neurons: NeuronSet, path: Path | str) -> Path:
    """Write a set; a file of that name is replaced.

    Raises:
        OSError: if it cannot be written.
        ValueError: for an index that no file can hold.

    """
    for name, indices in neurons.indices.items():
        if indices and max(indices) > HIGHEST:
            raise Refused(f"neuron {max(indices)} of {name} is above {HIGHEST}, the highest that a file can hold")
    values = {name: torch.tensor(indices, dtype=torch.int32) for name, indices in neurons.indices.items()}
    names = ("scale", "model", "provenance", "ssim_before", "ssim_after", "rows")
    return tensors.write(path, KIND, SCHEMA, values, {name: getattr(neurons, name) for name in names})


def load(path: Path | str) -> NeuronSet:
    """Read what ``save`` wrote.

    Raises:
        ValueError: in one line, if it is no such file, or its indices are no sorted lists.

    """
    values, facts = tensors.read(path, KIND, SCHEMA)
    try:
        indices = {name: tuple(tensor.tolist()) for name, tensor in sorted(values.items(), key=_depth)}
        for name, held in indices.items():
            if values[name].dtype != torch.int32 or list(held) != sorted(set(held)) or (held and held[0] < 0):
                raise Refused(f"{path}: the file is damaged ({name}); find or import the neurons again")
        neurons = NeuronSet(indices, **facts)
        numbers = (neurons.scale, neurons.ssim_before, neurons.ssim_after, neurons.rows)
        if not all(number is None or math.isfinite(number) for number in numbers) or neurons.scale is None:
            raise ValueError
        if not isinstance(neurons.model, str) or not isinstance(neurons.provenance, str):
            raise ValueError
        return neurons
    except Refused:
        raise
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: number formats without numbers
        raise Refused(f"{path}: the file is damaged; find or import the neurons again") from None


def check(neurons: NeuronSet, widths: Mapping[str, int], model: str, force: bool = False) -> None:
    """Raise ValueError, in one line, unless a set can be applied to a model.

    Args:
        neurons: the set.
        widths: the model's cross-attention layers, name -> number of value neurons.
        model: its fingerprint.
        force: accept a set of another checkpoint; layers and indices must fit all the same.

    """
    for name, indices in neurons.indices.items():
        if name not in widths:
            raise Refused(
                f"the neuron set names {name}, which is no cross-attention layer of this model; it has"
                f" {', '.join(widths) or 'none'}; find the neurons on this model"
            )
        wrong = [index for index in indices if not 0 <= index < widths[name]]
        if wrong:
            raise Refused(
                f"the neuron set names neuron {wrong[0]} of {name}, and the model has {widths[name]} there (0 to"
                f" {widths[name] - 1}); find the neurons on this model"
            )
    if neurons.model and neurons.model != model and not force:
        raise Refused(
            f"the neuron set was made for model {neurons.model}, and this is model {model}; find the neurons on this"
            " model, or force the set if you know that the two are close (force=True)"
        )


def merge(sets: Iterable[NeuronSet], force: bool = False) -> NeuronSet:
    """Return the union of sets of one model and one scale.

    Args:
        sets: at least one.
        force: merge sets of different models; the fingerprint is then that of the first.

    Raises:
        ValueError: for no set, for different models, or for different scales.

    """
    given = list(sets)
    if not given:
        raise Refused("there are no neuron sets to merge; give at least one")
    models = list(dict.fromkeys(s.model for s in given if s.model))
    if len(models) > 1 and not force:
        raise Refused(f"the neuron sets were made for different models ({', '.join(models)}); merge sets of one model")
    scales = list(dict.fromkeys(s.scale for s in given))
    if len(scales) > 1:
        raise Refused(f"the neuron sets have different scales ({', '.join(map('{:g}'.format, scales))}); give one")
    together: dict[str, set[int]] = {}
    for s in given:
        for name, indices in s.indices.items():
            together.setdefault(name, set()).update(indices)
    if len(given) == 1:
        return given[0]
    found = {name: tuple(sorted(indices)) for name, indices in sorted(together.items(), key=_depth)}
    said = "\n".join(dict.fromkeys(s.provenance for s in given if s.provenance))
    return NeuronSet(found, scales[0], models[0] if models else "", said, rows=sum(s.rows for s in given))


def diff(first: NeuronSet, second: NeuronSet) -> dict[str, dict[str, tuple[int, ...]]]:
    """Return "first", "second" and "both": the neurons that only one of two sets has, and those of both, per layer."""
    found: dict[str, dict[str, tuple[int, ...]]] = {"first": {}, "second": {}, "both": {}}
    for name in sorted(first.indices.keys() | second.indices.keys(), key=lambda n: _depth((n, None))):
        a, b = set(first.indices.get(name, ())), set(second.indices.get(name, ()))
        for kind, part in (("first", a - b), ("second", b - a), ("both", a & b)):
            if part:
                found[kind][name] = tuple(sorted(part))
    return found


def _depth(item: tuple[str, object]) -> tuple[int, str]:
    """Sort layers in the order of execution: down, mid, up, each by number."""
    name = item[0]
    order = ("down", "mid", "up")
    place = next((i for i, start in enumerate(order) if name.startswith(start)), len(order))
    return place, ".".join(f"{int(part):03d}" if part.isdigit() else part for part in name.split("."))
