"""Attraction and repulsion with three rows (GUARD: Zhao et al., ICML 2026).

Each step predicts without the prompt, with it, and with it under attention attenuation, and guides towards the third
and away from the second: eps = eps_u + s (eps_att - eps_u) - r_t (eps_plain - eps_u) with r_t = r cos(pi i / (2 T)).
One row per image and step more than guidance.

"orthogonalize": where the two directions are closer than cos = .9, the part of the attenuated one that lies along the
plain one is taken out (coefficient up to 2). The paper does not name it and ``parity="official"`` does it, as the code
does by default; with a weak attenuation it takes out nearly all of the guidance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..setting import setting
from .base import Guidance, Mitigation, Start, Step, Treatment, View
from .edit import Edit
from .spike_attenuation import Attenuate, refuse

CLOSE, LARGEST = 0.9, 2.0


@dataclass(frozen=True)
class ThreeRows(Mitigation):
    """Guide towards the attenuated and away from the plain prediction. A strength s scales r and the attenuation."""

    NAME = "guard"
    TITLE = "GUARD: attract and repel"
    SOURCE = "Zhao et al., ICML 2026"

    repulsion: float = setting(2.0, "r: how strongly it is guided away.", least=0)
    scale: float | None = setting(
        None, "s: of the guidance towards; the sampler's own where none is given.", kind=float, what="a guidance scale"
    )
    alpha: float = setting(0.3, "Factor of attention spikes.", least=0, most=1, step=0.05, neutral=1)
    tau: float = setting(0.1, "Z-score from which a token is a spike.", least=0, what="a z-score")
    orthogonalize: bool = setting(False, "Take the plain direction out of the attenuated one.")

    def _treat(self, start: Start, before: Treatment) -> Treatment:
        refuse(start.widths)
        official = self.parity == "official"
        alpha = 1 - (1 - self.alpha) * self.strength
        edit = Attenuate(alpha, self.tau, official=official)
        pull = Pull((*before.edits, edit), self.repulsion * self.strength, self.scale, self.orthogonalize or official)
        text = f"guided away from the plain prediction (r {pull.repulsion:g}), attention spikes x {alpha:g}"
        return replace(before, guidance=(*before.guidance, pull)).note(text)


class Pull(Guidance):
    """The guidance of ``ThreeRows``."""

    def __init__(self, edits: tuple[Edit, ...], repulsion: float, scale: float | None, orthogonal: bool) -> None:
        self.edits, self.repulsion, self.scale, self.orthogonal = edits, repulsion, scale, orthogonal

    def __call__(self, gap: Tensor, step: Step) -> Tensor:
        """Return s v_att - r_t v_plain as a gap that the sampler multiplies by its own scale."""
        to = step.predict(View(step.prompt, edits=self.edits)).to(gap) - step.uncond.to(gap)
        if self.orthogonal:
            to = orthogonal(to, gap)
        fade = math.cos(math.pi * step.index / (2 * step.count)) if step.count else 1.0
        scale = step.scale if self.scale is None else self.scale
        return (scale * to - self.repulsion * fade * gap) / step.scale


def orthogonal(to: Tensor, away: Tensor) -> Tensor:
    """Return ``to`` [B, C, h, w] without its part along ``away``, for the samples where the two are close."""
    a, b = to.flatten(1).float(), away.flatten(1).float()
    close = torch.cosine_similarity(a, b, dim=1) > CLOSE
    share = ((a * b).sum(1) / b.square().sum(1).clamp(min=1e-12)).clamp(-LARGEST, LARGEST)
    return to - torch.where(close, share, 0.0).reshape(-1, *[1] * (to.ndim - 1)).to(to) * away
