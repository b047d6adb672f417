"""Guidance by another wording of the prompt, and away from the first one (PRSS: Chen, Liu, Shah, Xu, CVPR 2025).

With m the noise gap of the SECOND wording p: up to l, a step is guided wholly by that wording,
eps = eps_u + g (eps_p - eps_u). Above it, that wording is still near the memorized one, and the step moves away from
the prompt o: with s = min((m - c) / (thr - c) g, g), c = (g l - thr) / (g - 1),
eps = eps_o + s (eps_p - eps_o) + (g - s) (eps_p - eps_u). One row per image and step more than guidance.

The published code does this for prompts whose own first step is above a limit; here that is the guard's verdict. Its
search for the wording among paraphrases of a language model is left to the user. l and thr are for SD1's 4 x 64 x 64
latents and go with the root of the number of elements. m is that of each image; ``parity="official"`` takes one of the
whole batch, at the paper's numbers whatever the size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..attributions.moment import Encoded
from ..setting import setting
from ..troubles import Refused
from .base import Guidance, Mitigation, Start, Step, Treatment, Unsuitable, View
from .noise_adjustment import SD1


@dataclass(frozen=True)
class Paraphrase(Mitigation):
    """Guide by a second wording. At a strength s the gap goes the share s of the way."""

    NAME = "paraphrase"
    TITLE = "Paraphrase"
    SOURCE = "Chen et al., CVPR 2025"

    text: str = setting("", "Of paraphrase: the prompt in other words.")
    lower: float = setting(
        3.0,
        "l: noise gap of that wording from which a step also moves away from the prompt.",
        above=0,
        what="a noise gap",
    )
    upper: float = setting(
        5.0, "thr: noise gap of that wording from which it does so fully.", above=0, what="a noise gap"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.text.strip():
            raise Refused(f"{self.NAME}: text is empty; give the prompt in other words")
        if self.lower >= self.upper:
            raise Refused(f"{self.NAME}: upper is {self.upper:g}; give a noise gap above lower ({self.lower:g})")

    def _treat(self, start: Start, before: Treatment) -> Treatment:
        if start.encode is None:
            raise Unsuitable("the text encoder is not known, so the second wording cannot be encoded")
        prompt = before.prompt or start.prompt
        other = start.encode([self.text])
        if other.text.shape[1:] != prompt.text.shape[1:]:
            raise Unsuitable(
                f"the second wording takes {other.text.shape[1]} columns and the prompt {prompt.text.shape[1]};"
                " give a wording of about the same length"
            )
        size = 1.0 if self.parity == "official" else (start.elements / SD1) ** 0.5
        anchor = Anchor(other, self.lower * size, self.upper * size, self.strength, self.parity == "official")
        return replace(before, guidance=(*before.guidance, anchor)).note(f"guided by {self.text!r}")


class Anchor(Guidance):
    """The guidance of ``Paraphrase``."""

    def __init__(self, other: Encoded, lower: float, upper: float, strength: float, batch: bool) -> None:
        self.other, self.lower, self.upper, self.strength, self.batch = other, lower, upper, strength, batch

    def __call__(self, gap: Tensor, step: Step) -> Tensor:
        """Return the gap of the prediction that the second wording leads to."""
        cond, uncond = step.uncond.to(gap) + gap, step.uncond.to(gap)
        other = step.predict(View(self.other.expand(len(gap)))).to(gap)
        own = other - uncond
        norms = own.float().flatten(1).norm(dim=1)
        if self.batch:
            norms = norms.norm().expand(len(gap))
        away = norms > self.lower
        wanted = own
        if step.scale > 1 and bool(away.any()):
            s = ramp(norms, self.lower, self.upper, step.scale).reshape(-1, *[1] * (gap.ndim - 1)).to(gap)
            anchored = cond + s * (other - cond) + (step.scale - s) * own
            wanted = torch.where(away.reshape(-1, *[1] * (gap.ndim - 1)), (anchored - uncond) / step.scale, own)
        return wanted if self.strength == 1 else torch.lerp(gap, wanted, self.strength)


def ramp(norms: Tensor, lower: float, upper: float, scale: float) -> Tensor:
    """Return s of each image: 1 at ``lower``, the guidance scale from ``upper`` on, a line between them."""
    origin = (scale * lower - upper) / (scale - 1)
    return ((norms - origin) / (upper - origin) * scale).clamp(max=scale)
