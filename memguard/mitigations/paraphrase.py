"""Re-anchoring on another wording of the prompt (PRSS: Chen, Liu, Shah, Xu, CVPR 2025).

Where the noise gap exceeds l, guidance starts from the user's second wording instead: with
s = min((m - c) / (thr - c) g, g), c = (g l - thr) / (g - 1), the step uses
eps = eps_o + s (eps_p - eps_o) + (g - s) (eps_p - eps_u), o the prompt, p the second wording. One row per image more at
such a step.

l and thr are for SD1's 4 x 64 x 64 latents and go with the root of the number of elements. m is that of each image;
``parity="official"`` takes one of the whole batch, at the paper's numbers whatever the size.

May import: memguard.mitigations, torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..attributions.moment import Encoded
from .base import Guidance, Mitigation, Start, Step, Treatment, Unsuitable, View
from .noise_adjustment import SD1


@dataclass(frozen=True)
class Paraphrase(Mitigation):
    """Guide by a second wording where the first one is memorized. At a strength s the gap goes the share s of the way.

    Args:
        text: the second wording.
        lower: l, the noise gap from which it acts.
        upper: thr, the noise gap from which it acts fully.

    """

    NAME = "paraphrase"
    TITLE = "Paraphrase"
    SOURCE = "Chen et al., CVPR 2025"

    text: str = ""
    lower: float = 3.0
    upper: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.text.strip():
            raise ValueError(f"{self.NAME}: text is empty; give the prompt in other words")
        self.demand("lower", self.lower > 0, "give a noise gap above 0")
        self.demand("upper", self.lower < self.upper, f"give a noise gap above lower ({self.lower:g})")

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
        return replace(before, guidance=(*before.guidance, anchor)).note(f"re-anchored on {self.text!r}")


class Anchor(Guidance):
    """The guidance of ``Paraphrase``."""

    def __init__(self, other: Encoded, lower: float, upper: float, strength: float, batch: bool) -> None:
        self.other, self.lower, self.upper, self.strength, self.batch = other, lower, upper, strength, batch

    def __call__(self, gap: Tensor, step: Step) -> Tensor:
        """Return the gap of the re-anchored prediction for the images above ``lower``."""
        norms = gap.float().flatten(1).norm(dim=1)
        if self.batch:
            norms = norms.norm().expand(len(gap))
        acts = norms > self.lower
        if step.scale <= 1 or not bool(acts.any()):
            return gap
        other = step.predict(View(self.other.expand(len(gap)))).to(gap)
        s = ramp(norms, self.lower, self.upper, step.scale).reshape(-1, *[1] * (gap.ndim - 1)).to(gap)
        cond, uncond = step.uncond.to(gap) + gap, step.uncond.to(gap)
        anchored = cond + s * (other - cond) + (step.scale - s) * (other - uncond)
        moved = torch.lerp(gap, (anchored - uncond) / step.scale, self.strength)
        return torch.where(acts.reshape(-1, *[1] * (gap.ndim - 1)), moved, gap)


def ramp(norms: Tensor, lower: float, upper: float, scale: float) -> Tensor:
    """Return s of each image: 1 at ``lower``, the guidance scale from ``upper`` on, a line between them."""
    origin = (scale * lower - upper) / (scale - 1)
    return ((norms - origin) / (upper - origin) * scale).clamp(max=scale)
