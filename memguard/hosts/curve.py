"""The noise gap of every model call of a run, collected without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor


class Curve:
    """RMS of the noise gap, mean over the images, call by call."""

    def __init__(self) -> None:
        self._points: list[Tensor] = []

    def add(self, sigma: Tensor, cond: Tensor, uncond: Tensor, coverage: Tensor | None) -> None:
        """Take one model call: its noise level [B], both predictions [B, C, ...], and where both act."""
        squares = (cond - uncond).square()
        if coverage is None:
            rms = squares.mean().sqrt()
        else:
            inside = coverage.to(squares.device).expand_as(squares)
            rms = (squares.masked_fill(~inside, 0).sum() / inside.sum()).sqrt()
        self._points.append(torch.stack([sigma.flatten()[0].to(rms), rms]))

    def points(self) -> tuple[tuple[float, float], ...]:
        """Return (sigma, RMS) of each call; calls without a finite RMS are left out."""
        if not self._points:
            return ()
        found = torch.stack(self._points).cpu()
        return tuple((float(s), float(r)) for s, r in found[found.isfinite().all(1)].tolist())
