"""What a host must do so that neurons can be searched on its model.

A probe is bound to one model and one prompt. It blocks value neurons of cross-attention layers: the output of
``to_v``, [rows, tokens, width], is multiplied with a factor per row and neuron.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..troubles import NoGradient as NoGradient

Masks = Mapping[str, Tensor]  # layer -> factors [rows, width]; layers that are left out are not touched
Neuron = tuple[str, int]  # layer and index


@dataclass
class Rows:
    """How much of the denoiser was evaluated, in rows: one latent through the network once.

    ``forward`` is counted by the probe. ``backward`` is in the same unit: the backward pass of one row costs as much as
    two rows forward, and as three where blocks are computed again to save memory.
    """

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Forward and backward together."""
        return self.forward + self.backward


class Probe(Protocol):
    """One prompt on one model.

    Attributes:
        model: fingerprint of the checkpoint.
        layers: the layers to search (read-only), name -> width, in the order of execution (shallow first).
        rows: the counter; ``noise`` adds its rows to ``forward``; what a backward costs is added by the search.

    """

    model: str
    rows: Rows

    @property
    def layers(self) -> Mapping[str, int]: ...  # noqa: D102

    def start(self, parity: str | None = None) -> tuple[Tensor, float]:
        """Return the model's inputs, float32 [n, C, h, w] of variance one, one per seed, and their timestep.

        Those of the first step of a run; with ``parity`` "official" untouched noise at the timestep of the second step.
        """
        ...

    def activations(self) -> dict[str, Tensor]:
        """Return |to_v(prompt)| averaged over the tokens, float32 [width] per layer, on the CPU; costs no rows."""
        ...

    def noise(self, x: Tensor, t: float, masks: Masks) -> Tensor:
        """Predict the noise with the prompt.

        Args:
            x: [R, C, h, w].
            t: timestep.
            masks: factors [R, width] per layer.

        Returns:
            float32 [R, C, h, w] in units of epsilon, on the device of ``x``.

        """
        ...

    def gradients(self, gates: Masks) -> AbstractContextManager[int]:
        """Put gates on the neurons inside the block, and make backward passes through ``noise`` possible.

        Args:
            gates: leaves that require a gradient, [1, width] per layer; the values of every row are multiplied with
                them. Backward passes must end before the block does: it may be saving memory by computing twice.

        Yields:
            the cost of one row's backward pass, in rows.

        Raises:
            NoGradient: if gradients cannot pass the model's weights.

        """
        ...
