"""The latents that a pipeline starts from, and other noise in their place."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...mitigations.base import Treatment
from ...mitigations.effect import Effect
from .calls import Call
from .hooks import Trouble
from .layouts import Layout
from .rows import OWN

if TYPE_CHECKING:
    from .steering import Steering


class Latents:
    """What one run of a pipeline starts from.

    Args:
        pipe: the pipeline.

    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._now: Tensor | None = None  # that the pipeline starts from
        self._own: Tensor | None = None  # as they were drawn, where a treatment has others

    def keep(self, result: Any) -> Any:
        """Take what ``prepare_latents`` returned; return the same with a copy that may be written to."""
        first, *rest = result if isinstance(result, tuple) else (result,)
        self._now = first.clone()  # some pipelines hand the user's own tensor through
        return (self._now, *rest) if isinstance(result, tuple) else self._now

    def take(self, treatment: Treatment, layout: Layout, effect: Effect) -> None:
        """Write a treatment's noise into the pipeline's own latents, as these lie; ``effect`` is told of it."""
        if treatment.noise is None or self._now is None:
            return
        noise = treatment.noise.to(self._now)
        if noise.shape != self._now.shape:
            noise = layout.back(noise)
        images = slice(None) if treatment.images is None else treatment.images
        self._own = self._now.clone()
        with torch.no_grad():
            self._now[images] = (noise * self._initial())[images]
        effect.changed("noise", self._own, self._now)

    def restore(self) -> None:
        """Write back what was drawn."""
        if self._own is not None and self._now is not None:
            with torch.no_grad():
                self._now.copy_(self._own)

    def noisy(self, call: Call, noise: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the latents of a first call that starts from other noise, as the model gets them.

        Args:
            call: of B images, or of several blocks of them.
            noise: of unit variance, [B, C, h, w].
            images: numbers of those that have it; None is all.

        """
        blocks = len(call.x) // len(noise)
        found = (noise * self.scale(call)).to(call.x).repeat(blocks, *(1,) * (noise.ndim - 1))
        if images is None:
            return found
        x = call.x.clone()  # the other images' own, to the last bit
        rows = torch.cat([images + block * len(noise) for block in range(blocks)])
        x[rows] = found[rows]
        return x

    def scale(self, call: Call) -> float:
        """Return what noise of unit variance is multiplied by in the model's input; schedulers scale it twice."""
        given = call.arguments.get("sample", call.arguments.get("hidden_states"))
        if self._now is None or given is None:
            return 1.0
        latents = self._now.float()
        x = given[: len(latents), : latents.shape[1]].float()
        if x.shape != latents.shape:
            return 1.0
        ratio = float((x * latents).sum() / latents.square().sum()) * self._initial()
        return 1.0 if math.isclose(ratio, 1.0, rel_tol=1e-4) or not math.isfinite(ratio) else ratio

    def _initial(self) -> float:
        return float(getattr(self.pipe.scheduler, "init_noise_sigma", 1.0))


def keeping_latents(
    pipe: Any, steering: Callable[[], Steering | None], trouble: Callable[[], Trouble | None]
) -> dict[str, Callable[..., Any]]:
    """Return the ``prepare_latents`` for ``methods`` that tells a run's steering which tensor it starts from."""
    if getattr(type(pipe), "prepare_latents", None) is None:
        return {}

    def prepare_latents(inner: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        result = inner(self, *args, **kwargs)
        now, guard = steering(), trouble()
        if now is None or guard is None or OWN.get():
            return result
        kept = guard(now.latents.keep, result)
        return result if kept is None else kept

    return {"prepare_latents": prepare_latents}
