"""What cross-attention gives to each word, recomputed from queries and keys beside the model's own call.

No attention backend is replaced: a host hands over the projected q and k of a layer, and softmax(q k^T) is taken here,
one head at a time. Mass is the mean over heads and picture positions, so the masses of all columns of a layer add up
to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from ..records import TokenSpan

UNIT = "share of cross-attention, mean over layers"
Mass = Mapping[str, Tensor]  # layer -> [B, tokens], in execution order down, mid, up


@dataclass(frozen=True)
class Projected:
    """Queries and keys of one cross-attention call.

    Attributes:
        q: [B, positions, heads * d].
        k: [B, tokens, heads * d].
        heads: number of heads.
        scale: of the logits; None is 1 / sqrt(d).

    """

    q: Tensor
    k: Tensor
    heads: int
    scale: float | None = None

    def rows(self, rows: slice) -> Projected:
        """Return some rows."""
        return Projected(self.q[rows], self.k[rows], self.heads, self.scale)

    def probabilities(self) -> Tensor:
        """Return softmax(q k^T), mean over heads, float32 [B, positions, tokens]."""
        q, k = (rearrange(t, "b n (h d) -> h b n d", h=self.heads) for t in (self.q, self.k))
        scale = self.scale if self.scale is not None else 1 / math.sqrt(q.shape[-1])
        total = q.new_zeros((), dtype=torch.float32)
        for one_q, one_k in zip(q, k, strict=True):  # all heads at once would take heads times the memory
            total = total + (one_q.float() @ one_k.float().transpose(-1, -2) * scale).softmax(-1)
        return total / self.heads


def fold(probabilities: Tensor, tokens: int) -> Tensor:
    """Return attention over a prompt's own columns, [B, positions, tokens].

    Hosts repeat prompts to a common length: a token's attention is then split over its copies. Columns that others
    append (pictures as prompts) are left out.
    """
    copies, rest = divmod(probabilities.shape[-1], tokens)
    if rest or copies == 0:
        return probabilities[..., :tokens]
    found: Tensor = probabilities.unflatten(-1, (copies, tokens)).sum(-2)
    return found


def mass(probabilities: Tensor) -> Tensor:
    """Return the mean over positions, [B, tokens], of probabilities [B, positions, tokens]."""
    return probabilities.mean(1)


def entropy(mass: Tensor, columns: Tensor | None = None) -> Tensor:
    """Return -sum p ln p over the columns, [B]; a column without mass adds nothing (Ren et al., ECCV 2024, eq. 4).

    Args:
        mass: [B, tokens].
        columns: bool [B or 1, tokens] of the columns that are added up; None for all.

    """
    parts = torch.special.entr(mass)
    found: Tensor = (parts if columns is None else parts * columns.to(parts)).sum(-1)
    return found


def shares(mass: Tensor, spans: Sequence[TokenSpan]) -> tuple[float, ...]:
    """Return the share of attention of each span, mean over images, of masses [B, tokens]."""
    return tuple(float(mass[:, list(span.columns)].sum(-1).mean()) for span in spans)
