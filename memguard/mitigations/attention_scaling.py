"""Cross-attention scaling and masking (Ren et al., ECCV 2024, section 5).

In every cross-attention layer and at every step, on the prompt's rows: the logit of BOS is multiplied by c1, and the
padding behind the words is left out, so that attention cannot gather on it. Multiplying a negative logit lowers it; the
method assumes that BOS is where attention rests.

``parity="official"``: the mask holds for the rows without the prompt as well, with the prompt's own length, and BOS is
scaled on rows 1, 3, 5, ..., which are the prompt's only for one image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..setting import setting
from .base import Mitigation, Parity, Start, Treatment, Unsuitable
from .edit import BOS, EOS, NOWHERE, PADDING, AttentionSite, Edit, last_share, rows_of


@dataclass(frozen=True)
class AttentionScaling(Mitigation):
    """Scale the logit of BOS and leave out the padding. At a strength s, c1 is 1 + (c1 - 1) s."""

    NAME = "attention_scaling"
    TITLE = "Attention scaling"
    SOURCE = "Ren et al., ECCV 2024"

    bos_scale: float = setting(
        1.25,
        "c1: what the logit of the prompt's first token is multiplied by.",
        above=0,
        shown=(0.01, 10),
        step=0.05,
        neutral=1,
    )
    mask_padding: bool = setting(True, "Leave the padding out of the attention.")
    mask_eos: bool = setting(False, "Leave the end of the prompt out too.")

    def _treat(self, start: Start, before: Treatment) -> Treatment:
        scale = 1 + (self.bos_scale - 1) * self.strength
        masks = self.mask_padding or self.mask_eos
        if scale == 1 and not masks:
            return before
        if not start.widths:
            raise Unsuitable(NOWHERE)
        if start.groups is None:
            raise Unsuitable("the prompt's tokens are not known, so BOS and padding cannot be told from words")
        masked = ((PADDING,) if self.mask_padding else ()) + ((EOS,) if self.mask_eos else ())
        edit = ScaleAndMask(scale, masked, self.strength, self.parity)
        return replace(before, edits=(*before.edits, edit)).note(self._says(scale))

    def _says(self, scale: float) -> str:
        left = [name for name, on in (("padding", self.mask_padding), ("EOS", self.mask_eos)) if on]
        out = f", {' and '.join(left)} left out of the attention" if left else ""
        return f"BOS logit x {scale:g}{out}"


class ScaleAndMask(Edit):
    """The edit of ``AttentionScaling``."""

    def __init__(self, bos_scale: float, masked: tuple[int, ...], share: float, parity: Parity) -> None:
        self.bos_scale, self.masked, self.share, self.parity = bos_scale, masked, share, parity
        self._factor: tuple[Tensor, Tensor] | None = None  # of a layout, which is the same in every layer and step

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> tuple[Tensor, Tensor, Tensor]:
        """Return the keys of BOS multiplied by c1; to_k has no bias, so that its logits are."""
        if self.bos_scale == 1 or site.groups is None:
            return q, k, v
        if self._factor is None or self._factor[0] is not site.groups:
            self._factor = site.groups, self._scales(site, k)
        return q, k * self._factor[1].to(k), v

    def _scales(self, site: AttentionSite, k: Tensor) -> Tensor:
        assert site.groups is not None
        rows = site.conditional
        bos = rows_of(site.groups, len(k)) == BOS
        if self.parity == "official":
            rows = torch.arange(len(k), device=k.device) % 2 == 1
            bos = torch.zeros_like(bos).index_fill(1, torch.zeros(1, dtype=torch.long, device=k.device), True)
        return torch.where(bos & rows[:, None], self.bos_scale, 1.0).to(k)[..., None]

    def keep(self, conditional: Tensor, groups: Tensor | None) -> Tensor | None:
        """Return all columns but the masked ones of the prompt's rows."""
        if groups is None or not self.masked:
            return None
        rows, table = conditional, rows_of(groups, len(conditional))
        if self.parity == "official":
            rows, table = torch.ones_like(rows), table[conditional][:1].expand(len(rows), -1)
        out = torch.zeros_like(table, dtype=torch.bool)
        for code in self.masked:
            columns = table == code
            out |= last_share(columns, self.share) if code == PADDING else columns
        return ~(out & rows[:, None])
