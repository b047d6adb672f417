"""One forward for several prompts: who takes its evidence, how it ends, and the latents that all prompts start from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...records import StepEvidence
from .rows import Enough


@dataclass
class Seen:
    """The Listener of one batch: keeps the evidence of all its prompts and ends the run after the last step."""

    steps: int
    evidence: list[StepEvidence] = field(default_factory=list)
    reason: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    extra_rows: int = 0
    columns: int = 0  # of the encoded prompts
    count: int | None = None

    def wants(self, step: int) -> bool:
        """Whether this step is among those asked for."""
        return step < self.steps

    def learn(self, **facts: Any) -> None:
        """Keep facts of the run."""
        self.facts |= facts

    def observe(self, evidence: StepEvidence) -> None:
        """Keep the evidence; raises Enough after the last step."""
        # the host's memory, once per batch: detectors then need not wait for a device once per prompt
        here = replace(evidence, noise_cond=evidence.noise_cond.cpu(), noise_uncond=evidence.noise_uncond.cpu())
        if evidence.attention is not None:
            here = replace(here, attention={name: mass.cpu() for name, mass in evidence.attention.items()})
        self.evidence.append(here if here.summary is None else replace(here, summary=here.summary.cpu()))
        if len(self.evidence) == self.steps:
            raise Enough

    def unavailable(self, reason: str) -> None:
        """Keep the reason; raises Enough."""
        self.reason = reason
        raise Enough

    def insist(self) -> None:
        """Nothing more: ``unavailable`` has ended the run."""


def latents_of_prompts(prompts: int, generators: Sequence[torch.Generator]) -> dict[str, Callable[..., Any]]:
    """Return the ``prepare_latents`` for ``methods`` that draws for each prompt as it is drawn for one alone.

    Args:
        prompts: of the batch.
        generators: one for each prompt, or one whose latents all prompts start from; the first is the call's own.

    """
    if prompts == 1:
        return {}

    def prepare_latents(inner: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(inner).bind(self, *args, **kwargs)
        bound.arguments["batch_size"] //= prompts
        drawn: list[torch.Tensor] = []
        for generator in generators:
            bound.arguments["generator"] = generator
            result = inner(*bound.args, **bound.kwargs)
            first, *rest = result if isinstance(result, tuple) else (result,)
            drawn.append(first)
        latents = torch.cat(drawn * (prompts // len(drawn)))
        return (latents, *rest) if isinstance(result, tuple) else latents

    return {"prepare_latents": prepare_latents}


def together(pipe: Any) -> bool:
    """Whether several prompts can start from the same latents in one call."""
    return "batch_size" in inspect.signature(type(pipe).prepare_latents).parameters
