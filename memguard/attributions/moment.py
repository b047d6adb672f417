"""A scored model call that can be made again with another prompt: all that an attribution needs from a host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..records import StepEvidence


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model gets it: ``text`` [B, tokens, d], ``pooled`` [B, p] where the model has one."""

    text: Tensor
    pooled: Tensor | None = None

    def row(self, index: int) -> Encoded:
        """Return one row."""
        return self.rows(slice(index, index + 1))

    def rows(self, rows: slice | Tensor) -> Encoded:
        """Return some rows, by a slice or their numbers; a number may come several times."""
        return Encoded(self.text[rows], None if self.pooled is None else self.pooled[rows])

    def prompts(self) -> tuple[int, ...]:
        """Return the number of the prompt of each row: rows of the same text have the same number, counted from 0."""
        first: list[Tensor] = []
        numbers = []
        for text in self.text:
            number = next((n for n, known in enumerate(first) if torch.equal(known, text)), len(first))
            first += [text] if number == len(first) else []
            numbers.append(number)
        return tuple(numbers)

    def expand(self, rows: int) -> Encoded:
        """Return the prompt repeated to a number of rows."""
        times = rows // len(self.text)
        pooled = None if self.pooled is None else self.pooled.repeat(times, 1)
        return Encoded(self.text.repeat(times, 1, 1), pooled)


@dataclass(frozen=True)
class Moment:
    """One model call.

    Attributes:
        evidence: what was predicted, [B, C, ...] for B images.
        prompt: what the call was conditioned on, B rows.
        reference: the prompt that it is compared with, B rows; None where the host does not know it.
        predict: from a prompt of V * B rows, variant by variant, to the prediction [V * B, C, ...] of the same latents
            in the units and the shape of the evidence, float32. Follows torch's gradient mode.

    """

    evidence: StepEvidence
    prompt: Encoded
    reference: Encoded | None
    predict: Callable[[Encoded], Tensor]

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.evidence.noise_cond)

    def norms(self, noise: Tensor) -> Tensor:
        """Return d_j = ||noise_j - noise_uncond_j||_2 of each row, float32 [V, B] (Wen et al., ICLR 2024, eq. 3)."""
        reference, coverage = self.evidence.noise_uncond.to(noise.device), self.evidence.coverage
        gap = noise.float().reshape(-1, *reference.shape) - reference.float()
        if coverage is not None:
            gap = gap.masked_fill(~coverage.to(gap.device, torch.bool), 0)
        found: Tensor = torch.linalg.vector_norm(gap.flatten(2), dim=-1)
        return found

    @property
    def scores(self) -> Tensor:
        """The score of each image with the prompt itself, float32 [B]."""
        return self.norms(self.evidence.noise_cond)[0]
