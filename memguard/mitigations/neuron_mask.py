"""Value neurons of a NeuronSet multiplied by a factor (NeMo: Hintersdorf, Struppek et al., NeurIPS 2024, section 4).

Masking conceals a memory and does not erase it: another prompt, or a search over embeddings, may find it again
(Kowalczuk et al., 2025). ``parity="official"``: the rows without the prompt are masked too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..records import NeuronSet
from ..setting import setting
from ..troubles import Refused
from .base import Mitigation, Start, Treatment, Unsuitable
from .edit import NOWHERE, AttentionSite, Edit


@dataclass(frozen=True)
class NeuronMask(Mitigation):
    """Multiply the value neurons of a set. At a strength s, the factor is 1 - (1 - factor) s."""

    NAME = "neuron_mask"
    TITLE = "Neuron mask"
    SOURCE = "Hintersdorf et al., NeurIPS 2024"

    neurons: NeuronSet = field(default_factory=lambda: NeuronSet({}))
    factor: float | None = setting(
        None,
        "What the neurons are multiplied by: 0 silences them; as the set says where none is given.",
        kind=float,
        shown=(0, 1),
        step=0.05,
        unset=-1,
        neutral=1,
    )
    force: bool = setting(False, "Use a set that was made for another checkpoint, a close one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.neurons, NeuronSet):
            raise Refused(f"{self.NAME}: neurons is {self.neurons!r}; give a NeuronSet")
        if not any(self.neurons.indices.values()):
            raise Refused(f"{self.NAME}: neurons is empty; load a set, or find one with memguard neurons find")

    def _treat(self, start: Start, before: Treatment) -> Treatment:
        whole = self.neurons.scale if self.factor is None else self.factor
        factor = 1 - (1 - whole) * self.strength
        if factor == 1:
            return before
        if not start.widths:
            raise Unsuitable(f"{NOWHERE}, so it knows no value neurons")
        from ..neurons.files import check  # only who has a set needs the room

        check(self.neurons, start.widths, start.model, self.force)
        edit = Mask(self.neurons.indices, factor, everywhere=self.parity == "official")
        count = sum(map(len, self.neurons.indices.values()))
        return replace(before, edits=(*before.edits, edit)).note(f"{count} value neurons x {factor:g}")


class Mask(Edit):
    """The edit of ``NeuronMask``."""

    def __init__(self, indices: dict[str, tuple[int, ...]], factor: float, everywhere: bool = False) -> None:
        self.indices = {layer: torch.tensor(found) for layer, found in indices.items() if found}
        self.factor, self.everywhere = factor, everywhere
        self._factors: dict[str, tuple[Tensor, Tensor]] = {}  # by layer, for rows that are the same at every step

    def acts(self, layer: str) -> bool:
        """Whether the set has neurons of this layer."""
        return layer in self.indices

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> tuple[Tensor, Tensor, Tensor]:
        """Return the values with the neurons of the prompt's rows multiplied."""
        known = self._factors.get(site.layer)
        if known is None or known[0] is not site.conditional:
            known = self._factors[site.layer] = site.conditional, self._table(site, v)
        return q, k, v * known[1].to(v)

    def _table(self, site: AttentionSite, v: Tensor) -> Tensor:
        """Return the factors of a layer, [rows, 1, neurons]; 1 in the rows that are let be."""
        factor = v.new_ones(v.shape[-1]).index_fill(0, self.indices[site.layer].to(v.device), self.factor)
        rows = torch.ones_like(site.conditional) if self.everywhere else site.conditional
        return torch.where(rows[:, None, None], factor, torch.ones_like(factor))
