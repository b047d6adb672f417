"""Guidance that is limited only where the running noise-gap map is high (this project's own; no paper).

Template memorization copies a part of a picture, and no published mitigation is made for that. The map of a call is the
RMS of the noise gap over the channels, smoothed over 3 x 3 pixels, and averaged over the calls so far with a decay. At
each pixel the gap is multiplied by min(1, limit / map) ** power. The limit is what ordinary prompts reach at the first
step by the profile, or without a profile the lower quarter of the map; it grows as the map's own median does, since the
gap of every prompt grows while noise falls. Where a whole picture is memorized, guidance is all but off everywhere, and
what is left is no copy and not much of a picture either (docs/evidence/mitigation.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..setting import setting
from .base import Guidance, Mitigation, Start, Step, Treatment

QUARTER = 0.25


@dataclass(frozen=True)
class LocalGuidance(Mitigation):
    """Limit guidance in memorized places. At a strength s the gap goes the share s of the way."""

    NAME = "local_guidance"
    TITLE = "Local guidance"
    SOURCE = "MemGuard"

    level: float = setting(1.0, "Factor of the limit; higher limits less.", above=0, what="a factor")
    power: float = setting(4.0, "How sharply guidance falls above the limit.", above=0, what="a power")
    decay: float = setting(
        0.7, "Share of the map so far that the next call keeps.", least=0, below=1, step=0.05, what="a share"
    )

    def _treat(self, start: Start, before: Treatment) -> Treatment:
        limiter = Limiter(self, start.threshold)
        text = "guidance limited where the noise gap is high"
        return replace(before, guidance=(*before.guidance, limiter)).note(text)


class Limiter(Guidance):
    """The guidance of ``LocalGuidance``: a video and its sound are limited each by a map of its own."""

    def __init__(self, settings: LocalGuidance, ordinary: float | None) -> None:
        self.settings, self.ordinary = settings, ordinary
        self._limits: list[Limits] = []

    def __call__(self, gap: Tensor, step: Step) -> Tensor:
        """Return the gap, limited pixel by pixel."""
        parts = step.layout.parts(gap)
        self._limits = self._limits or [Limits(self.settings, self.ordinary) for _ in parts]
        return step.layout.whole([own.limited(part) for own, part in zip(self._limits, parts, strict=True)])


class Limits:
    """The running map of one run's latents of one kind, and the gap limited by it."""

    def __init__(self, settings: LocalGuidance, ordinary: float | None) -> None:
        self.settings, self.ordinary = settings, ordinary
        self._map: Tensor | None = None
        self._limit = torch.zeros(())  # at the first call, [B, 1, ...]
        self._median = torch.ones(())

    def limited(self, gap: Tensor) -> Tensor:
        """Return the gap [B, C, h, w], of frames [B, C, T, h, w], of sound also [B, C, n], limited pixel by pixel."""
        here = smooth(gap.float().square().mean(1, keepdim=True).sqrt())
        if self._map is None:
            self._map, self._median = here, median(here)
            lowest = here.flatten(1).quantile(QUARTER, dim=1).reshape(self._median.shape)
            self._limit = lowest if self.ordinary is None else torch.full_like(lowest, self.ordinary)
        else:
            self._map = self.settings.decay * self._map + (1 - self.settings.decay) * here
        growth = (median(self._map) / self._median.clamp(min=1e-12)).clamp(min=1)
        limit = self.settings.level * self._limit * growth
        weight = (limit / self._map.clamp(min=1e-12)).clamp(max=1) ** self.settings.power
        return gap * (1 + self.settings.strength * (weight - 1)).to(gap)


def smooth(values: Tensor) -> Tensor:
    """Return maps [B, 1, h, w], [B, 1, T, h, w] of frames, [B, 1, n] of sound, averaged over 3 x 3 pixels of each."""
    frames = values.reshape(-1, 1, *values.shape[-2:])
    padded = functional.pad(frames, (1, 1, 1, 1), mode="replicate")
    return functional.avg_pool2d(padded, 3, 1).reshape(values.shape)


def median(values: Tensor) -> Tensor:
    """Return the median of each image, with as many axes as the values: [B, 1, 1, 1] of [B, 1, h, w]."""
    return values.flatten(1).median(1).values.reshape(-1, *[1] * (values.ndim - 1))
