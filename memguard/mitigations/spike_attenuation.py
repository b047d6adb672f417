"""Cross-attention spike attenuation (the attention part of GUARD: Zhao et al., ICML 2026).

Per row, head and step, in the layers on the way down and in the middle: m_i is the largest logit of token i over the
picture's positions, and token i is a spike where its z-score over the tokens without BOS exceeds tau. Logits of spikes
are multiplied by alpha.

What differs from the official code, which ``parity="official"`` reproduces: there every logit of a spike is multiplied,
and a negative one rises; here only positive logits are multiplied ("positive"), or logits above mean + tau * std of the
largest ones are cut ("cap"). Each chunk of a long prompt has its own statistics.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..setting import setting
from ..troubles import Refused
from .base import Mitigation, Start, Treatment, Unsuitable
from .edit import BOS, CHUNK, NOWHERE, AttentionSite, Edit, heads_last, rows_of

EARLY = ("down_blocks", "mid_block")
ELSEWHERE = "it acts on the way down and in the middle, and the layers of this model stand in one row"


@dataclass(frozen=True)
class SpikeAttenuation(Mitigation):
    """Attenuate the logits of tokens that attention gathers on. At a strength s, alpha is 1 - (1 - alpha) s."""

    NAME = "spike_attenuation"
    TITLE = "Spike attenuation"
    SOURCE = "Zhao et al., ICML 2026"

    alpha: float = setting(0.3, "Factor of a spike's logits.", least=0, most=1, step=0.05, neutral=1)
    tau: float = setting(0.01, "Z-score from which a token is a spike.", least=0, what="a z-score")
    rule: Literal["positive", "cap"] = setting(
        "positive",
        "What is done to a spike.",
        choices={"positive": "positive logits are multiplied", "cap": "they are cut, at a strength s by the share s"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parity and self.rule != "positive":
            raise Refused(f"{self.NAME}: parity='official' multiplies every logit; leave rule at 'positive'")

    def _treat(self, start: Start, before: Treatment) -> Treatment:
        alpha = 1 - (1 - self.alpha) * self.strength
        if alpha == 1 and self.rule == "positive":
            return before
        refuse(start.widths)
        edit = Attenuate(alpha, self.tau, self.strength if self.rule == "cap" else None, self.parity == "official")
        how = "cut at mean + tau std" if self.rule == "cap" else f"x {alpha:g}"
        return replace(before, edits=(*before.edits, edit)).note(f"attention spikes (z above {self.tau:g}) {how}")


class Attenuate(Edit):
    """The edit of ``SpikeAttenuation``."""

    def __init__(self, alpha: float, tau: float, cap: float | None = None, official: bool = False) -> None:
        self.alpha, self.tau, self.cap, self.official = alpha, tau, cap, official

    def acts(self, layer: str) -> bool:
        """Whether this is one of the early layers."""
        return layer.startswith(EARLY)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, site: AttentionSite) -> tuple[Tensor, Tensor, Tensor]:
        """Under official parity, return the keys of spikes multiplied by alpha."""
        if not self.official:
            return q, k, v
        highest = logits(q, k, site).amax(2)
        factor = torch.where(self._spikes(highest, site), self.alpha, 1.0).to(k)  # [B, heads, tokens]
        return q, (heads_last(k, site.heads) * factor.transpose(1, 2)[..., None]).flatten(2), v

    def bias(self, q: Tensor, k: Tensor, site: AttentionSite) -> Tensor | None:
        """Return what takes the positive logits of spikes down; it never raises one."""
        if self.official:
            return None
        found = logits(q, k, site)
        highest = found.amax(2)
        if self.cap is None:
            spikes = self._spikes(highest, site)
            return (found.clamp_(min=0) * ((self.alpha - 1) * spikes.to(found))[:, :, None]).to(q)
        mean, std, _ = self._statistics(highest, site)
        limit = torch.where(site.conditional[:, None, None], mean + self.tau * std, torch.inf).clamp(min=0)
        limit = limit.masked_fill(self._rests(highest, site), torch.inf)
        return ((limit[:, :, None] - found).clamp_(max=0) * self.cap).to(q)

    def _spikes(self, highest: Tensor, site: AttentionSite) -> Tensor:
        mean, std, safe = self._statistics(highest, site)
        return ((highest - mean) / (std + 1e-6) > self.tau) & ~safe & site.conditional[:, None, None]

    def _statistics(self, highest: Tensor, site: AttentionSite) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean and unbiased std over the tokens without BOS of each chunk, and where BOS is."""
        rests = self._rests(highest, site)
        size = CHUNK if highest.shape[-1] % CHUNK == 0 else highest.shape[-1]
        parts, counts = highest.unflatten(-1, (-1, size)), (~rests).to(highest).unflatten(-1, (-1, size))
        number = counts.sum(-1, keepdim=True)
        mean = (parts * counts).sum(-1, keepdim=True) / number
        variance = ((parts - mean).square() * counts).sum(-1, keepdim=True) / (number - 1).clamp(min=1)
        mean, std = mean.expand_as(parts).flatten(-2), variance.sqrt().expand_as(parts).flatten(-2)
        return mean, std, rests.expand_as(highest)

    def _rests(self, highest: Tensor, site: AttentionSite) -> Tensor:
        """Return where BOS is, bool [B, 1, tokens]; every chunk starts with it."""
        if site.groups is not None:
            return (rows_of(site.groups, len(highest)) == BOS)[:, None]
        columns = torch.arange(highest.shape[-1], device=highest.device)
        return (columns % CHUNK == 0).expand(len(highest), 1, -1)


def refuse(layers: Collection[str]) -> None:
    """Raise Unsuitable if there are no layers on the way down or in the middle."""
    if not layers:
        raise Unsuitable(NOWHERE)
    if not any(layer.startswith(EARLY) for layer in layers):
        raise Unsuitable(ELSEWHERE)


def logits(q: Tensor, k: Tensor, site: AttentionSite) -> Tensor:
    """Return the scaled logits, float32 [B, heads, positions, tokens]."""
    a, b = (heads_last(t, site.heads).transpose(1, 2).float() for t in (q, k))
    return (a @ b.transpose(-1, -2)) * site.scale
