"""From which inputs of a denoiser call a tensor inside it was computed: seen while torch computes, never guessed.

A mode of torch stands beside every function that the call makes and lets it through as it is. What a function gives
out comes from whatever its arguments come from. Where a tensor's way cannot be seen (a kernel that is no function of
torch), it comes from nothing that is known, so nothing is said of it.
"""

from __future__ import annotations

import functools
import logging
import operator
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

log = logging.getLogger("memguard")

TEXT, PICTURE, OTHER, JOINED = 1, 2, 4, 8  # the last: text and picture were put into one sequence
SHAPED = ("to", "type_as", "expand_as", "view_as", "reshape_as")  # of what follows the first, the shape or type alone
JOINS = ("cat", "concat", "concatenate")
SEQUENCE = 3  # axes of what is attended to: [rows, columns, features]


def inputs(arguments: Mapping[str, Any]) -> Iterator[tuple[Tensor, int]]:
    """Return the sequences that a denoiser is called with, and what each is; times, masks and places are none.

    Args:
        arguments: of the call, by name.

    """
    for name, value in arguments.items():
        kind = {"encoder_hidden_states": TEXT, "sample": PICTURE, "hidden_states": PICTURE}.get(name, OTHER)
        for tensor in _tensors(value):
            if tensor.ndim >= SEQUENCE:
                yield tensor, kind


class Lineage(TorchFunctionMode):
    """Follows the sequences that one denoiser call gets.

    Args:
        arguments: of the call, by name.

    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        super().__init__()
        self._known: Any = WeakTensorKeyDictionary()
        for tensor, kind in inputs(arguments):
            self._mark(tensor, kind)

    def of(self, tensor: Tensor) -> int:
        """Return what a tensor comes from: TEXT, PICTURE, OTHER and JOINED, added up; 0 where nothing is known."""
        return int(self._known.get(tensor, 0))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make a call of torch as it is asked for, and follow what it gives out."""
        given = kwargs or {}
        made = func(*args, **given)
        try:
            self._follow(func, args, given, made)
        except Exception as error:  # a tensor of another package
            log.debug("what tensors come from is not known: %s", error)
            self._known.clear()
        return made

    def _follow(self, func: Any, args: Any, given: Any, made: Any) -> None:
        name = getattr(func, "__name__", "")
        if name.endswith("_like") or name.startswith("new_"):
            return
        kinds = [self.of(tensor) for tensor in _tensors(args[:1] if name in SHAPED else (args, given))]
        kind = functools.reduce(operator.or_, kinds, 0)
        if kind & PICTURE and name in JOINS and any(each & TEXT and not each & PICTURE for each in kinds):
            kind |= JOINED
        if kind:
            for tensor in _tensors(made):
                self._mark(tensor, kind)
            if func is Tensor.__setitem__:
                self._mark(args[0], kind)

    def _mark(self, tensor: Tensor, kind: int) -> None:
        self._known[tensor] = self.of(tensor) | kind
        if (base := tensor._base) is not None and base is not tensor and self.of(base) | kind != self.of(base):
            self._known[base] = self.of(base) | kind  # what was written into a part stands in the whole


def _tensors(value: Any) -> Iterator[Tensor]:
    """Find the tensors in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
