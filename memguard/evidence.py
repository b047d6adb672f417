"""What a host saw of a run. The only record with tensors of a sampling run, and the only way they reach the core."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from .layout import Layout

if TYPE_CHECKING:  # a command that only prints its help does not wait for it
    from torch import Tensor

Reference = Literal["negative", "empty"]
Parameterization = Literal["epsilon", "flow_velocity"]

REFERENCES: tuple[Reference, ...] = ("negative", "empty")


@dataclass(frozen=True)
class StepEvidence:
    """What a host saw at one model call of one sampling run.

    Attributes:
        step: index of the model call, 0 for the first.
        num_steps: number of sampling steps of the run; 0 where the host cannot tell.
        sigma: noise level in the variance-exploding scale, sqrt((1 - alpha_bar) / alpha_bar); for flow models in 0..1.
        sigma_max: the model's largest sigma.
        timestep: the same on the 1000-step training schedule, where the model has one.
        noise_cond: prediction with the prompt, [B, C, ...] as the model has it: [B, C, h, w] for pictures. In units of
            epsilon; of the velocity for flow models.
        noise_uncond: prediction of the same rows with the reference prompt, in the same shape.
        coverage: where both prompts act, bool [B or 1, 1, ...]; None means everywhere.
        parameterization: "epsilon" (also for v-prediction, converted) or "flow_velocity".
        family: "sd15", "sd2", "sdxl", "sd3", "flux" or "other".
        reference: what ``noise_uncond`` was conditioned on.
        roles: the host's names of the two conditionings.
        full_noise: whether the run started from pure noise, where the host knows; None lets ``sigma`` tell. Schedules
            of few steps start well below ``sigma_max`` and from pure noise all the same.
        attention: cross-attention of the prompt's rows: layer -> mass of each token column, float32 [B, tokens], mean
            over heads and positions, in the order of execution; None where it was not read.
        summary: columns of EOS and padding, bool [B or 1, tokens]; None where the tokens are not known.
        unread: why attention was not read, where a detector asked for it.
        prompts: number of the prompt of each image, where a batch holds several prompts; empty for one prompt.
        layout: how the predictions lie.

    """

    step: int
    num_steps: int
    sigma: float
    sigma_max: float
    timestep: float | None
    noise_cond: Tensor
    noise_uncond: Tensor
    coverage: Tensor | None = None
    parameterization: Parameterization = "epsilon"
    family: str = "other"
    reference: Reference = "negative"
    roles: tuple[str, str] = ("positive", "negative")
    full_noise: bool | None = None
    attention: Mapping[str, Tensor] | None = None
    summary: Tensor | None = None
    unread: str = ""
    prompts: tuple[int, ...] = ()
    layout: Layout = Layout()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its maps: of a picture's latents, or of all frames, one below the other."""
        return self.layout.size(self.noise_cond)

    def rows(self, rows: slice | Tensor) -> StepEvidence:
        """Return the evidence of some images, by a slice or their numbers."""

        def part(values: Tensor | None) -> Tensor | None:
            return values if values is None or len(values) == 1 else values[rows]

        masses = None if self.attention is None else {name: mass[rows] for name, mass in self.attention.items()}
        import torch

        numbers = torch.tensor(self.prompts)
        return replace(
            self,
            noise_cond=self.noise_cond[rows],
            noise_uncond=self.noise_uncond[rows],
            coverage=part(self.coverage),
            attention=masses,
            summary=part(self.summary),
            prompts=tuple(numbers[rows if isinstance(rows, slice) else rows.cpu()].tolist()) if self.prompts else (),
        )
