"""Edits of cross-attention that is found by structure: torch's own function gets edited queries, keys and values.

What reaches it is what the model compares, normed and rotated, so a key times c is a logit times c here too. Nothing is
edited that ``structure`` does not find in the call itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...mitigations.edit import Part, Plan
from .attended import Attended
from .hooks import Trouble
from .rows import OWN
from .structure import Structure, crossing


class Edited:
    """Stands in the attention of a denoiser that has no layers of a known name.

    Args:
        module: the denoiser, not compiled.
        plan: gives the plan that layers follow now.
        apart: block in which they follow none.
        trouble: of the run; attention that cannot be edited there computes as it is.

    """

    def __init__(
        self, module: nn.Module, plan: Callable[[], Plan | None], apart: Callable[[], Any], trouble: Trouble
    ) -> None:
        self.module, self.plan, self.apart, self.trouble = module, plan, apart, trouble
        self.structure = Structure(module, self._see, lambda: plan() is not None, self._guarded)

    @property
    def widths(self) -> dict[str, int]:
        """The number of value neurons of each layer that was found; before any call, of those that look like it."""
        found = {name: self.module.get_submodule(name) for name in self.structure.sites} or crossing(self.module)
        return {name: _width(layer) for name, layer in found.items()}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand there for the time of the block."""
        with self.structure.installed():
            yield

    def _guarded(self, what: Callable[..., Any], *args: Any) -> Any:
        if OWN.get():  # an attempt: what goes wrong is told of the attempt
            return what(*args)
        return self.trouble(partial(what, *args))

    def _see(self, name: str, attended: Attended) -> Tensor | None:
        """Return what a layer gives out under the plan; None if the plan does not act on it."""
        plan, whole = self.plan(), attended.whole()
        if plan is None:
            return None
        query, key, value = (each.transpose(1, 2).flatten(2) for each in (whole.query, whole.key, whole.value))
        if not plan.fits(key) or not any(edit.acts(name) or plan.cuts for edit in plan.edits):
            return None
        heads = whole.query.shape[1]

        def backend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, rows: Part | None, columns: Any) -> Tensor:
            query, key, value = (each.unflatten(2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
            mask = whole.mask if rows is None else whole.masked(rows, columns)
            with self.apart():
                return Attended(query, key, value, _joined(mask, bias, q), whole.scale, whole.others).made()

        return plan.attend(name, heads, whole.scale, query, key, value, backend, whole.live)


def _joined(mask: Tensor | None, bias: Tensor | None, query: Tensor) -> Tensor | None:
    """Return a model's mask and a bias [B, heads, positions, tokens] as one."""
    if mask is None or bias is None:
        return mask if bias is None else bias.to(query)
    if mask.dtype == torch.bool:
        return bias.to(query).masked_fill(~mask, -torch.inf)
    return bias.to(query) + mask.to(query)


def _width(layer: Any) -> int:
    values = getattr(layer, "to_v", None)
    return int(getattr(values, "out_features", 0))
