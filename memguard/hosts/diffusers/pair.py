"""Prompt and negative prompt of one step, predicted in one model call or in two (memguard.host.Call)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from ... import host
from ...attributions.moment import Encoded
from ...host import Role
from ...layout import Layout
from .calls import Call, output_of, prompt_of, tensor_of
from .latents import Latents
from .levels import gain, level


class Pair:
    """The predictions of one step; see memguard.host.Call.

    Args:
        scheduler: of the pipeline.
        calls: for each of the pipeline's model calls its rows of each role; several where it makes one call for each.
        latents: that the run starts from.
        scale: guidance scale.
        others: prompts of the run that these calls do not hold.

    """

    coverage: Tensor | None = None
    layout = Layout()
    why = ""

    def __init__(
        self,
        scheduler: Any,
        calls: Sequence[tuple[Call, Mapping[Role, slice]]],
        latents: Latents,
        scale: float = 0.0,
        others: Mapping[Role, Encoded | None] | None = None,
    ) -> None:
        self.calls, self.scale, self._latents = calls, scale, latents
        self._sides = {role: (call, rows) for call, blocks in calls for role, rows in blocks.items()}
        call, rows = self._own = self._sides.get("prompt", next(iter(self._sides.values())))
        self._scheduler, self._here = scheduler, (here := level(scheduler, call.timestep))
        self.x = call.x[rows]
        self.level = host.Level(here.sigma, here.sigma_max, here.timestep, here.parameterization, here.full_noise)
        known = {role: prompt_of(call.arguments).rows(rows) for role, (call, rows) in self._sides.items()}
        self.given: Mapping[Role, Encoded] = {k: v for k, v in (others or {}).items() if v is not None} | known
        self._put: tuple[Mapping[Role, Tensor], Tensor | None] | None = None

    def made(self, calls: Sequence[Call]) -> Pair:
        """Return the same step of other calls, one for each of these."""
        rows = (rows for _, rows in self.calls)
        return Pair(self._scheduler, list(zip(calls, rows, strict=True)), self._latents, self.scale)

    @cached_property
    def noise(self) -> Tensor | None:
        """Noise of unit variance that the run starts from; None where it does not start from noise alone."""
        return self.x.float() / self._latents.scale(self._own[0]) if self._here.full_noise else None

    @cached_property
    def predicted(self) -> Mapping[Role, Tensor]:
        """What was predicted, in units of epsilon."""
        return {role: self._here.convert(call.prediction[rows], self.x) for role, (call, rows) in self._sides.items()}

    def latents(self, noise: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the latents of a run that starts from other noise; see memguard.host.Call."""
        call, rows = self._own
        return self._latents.noisy(call.part(rows), noise, images)

    def predict(self, role: Role, prompt: Encoded, x: Tensor) -> Tensor:
        """Predict the rows of a role with other prompts, V of them for each image."""
        call, rows = self._sides.get(role, self._own)
        made = call.repeat(rows, prompt, None if x is self.x else x)
        return self._here.convert(made, x.repeat(len(made) // len(x), *(1,) * (x.ndim - 1)))

    def put(self, predicted: Mapping[Role, Tensor], images: Tensor | None = None) -> None:
        """Keep other predictions, for ``output`` or for the scheduler's step."""
        self._put = predicted, images

    def prediction(self, role: Role) -> Tensor:
        """Return what is to be used for a role, in the model's own units."""
        call, rows = self._sides[role]
        own = call.prediction[rows]
        other = None if self._put is None else self._put[0].get(role)
        return own if other is None else own.float() + (other - self.predicted[role]) / gain(self._here)

    def output(self, output: Any) -> Any:
        """Return the output of the one call that holds both roles, with what was put; None where nothing was."""
        if self._put is None:
            return None
        predicted, images = self._put
        chosen = slice(None) if images is None else images
        ((call, _),) = self.calls
        changed = call.layout.latents(tensor_of(output)).clone()
        for role in predicted:
            rows = self._sides[role][1]
            changed[rows, : call.prediction.shape[1]][chosen] = self.prediction(role).to(changed)[chosen]
        return output_of(output, call.layout.back(changed))
