"""Filter by the entropy of cross-attention during training (Ren et al., ECCV 2024).

A sample whose caption's attention has a high entropy is left out of this step. It is read from the step's own forward:
no evaluation more, one softmax of one layer. The entropy is that of the mean over heads and picture positions, as in
the published code of the detector, of the layer that the detector reads (``detectors.attention_entropy``). On networks
whose attention is not that of Stable Diffusion 1 the direction must be measured first: on the test bed
it singles out no duplicates (docs/evidence/audits/training.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ..attributions.attention import entropy, mass
from ..detectors.attention_entropy import default_layer
from ..troubles import Refused
from .log import Log
from .network import READING, unwrapped
from .weights import Above, Filter, Threshold, per_sample


class EntropyFilter(Filter):
    """Weighs samples by the entropy of their captions' attention.

    ::

        with entropy.reading(unet):
            predicted = unet(noisy, timesteps, text).sample
        weights = entropy(names=batch["file"])

    Args:
        threshold: nats; or for each noise level, ``{600: 1.2, 800: 1.3}``.
        above: what happens above the threshold, "skip" or "scale".
        layer: name of the layer; None is the detector's.
        log: takes scores step by step.

    """

    NAME = "attention_entropy"

    def __init__(
        self, threshold: Threshold, above: Above = "skip", layer: str | None = None, log: Log | None = None
    ) -> None:
        super().__init__(threshold, above, log)
        self.layer = layer
        self._scores: Tensor | None = None

    @contextmanager
    def reading(self, network: Any) -> Iterator[None]:
        """Read the forward inside; nothing that it computes is changed.

        Args:
            network: that is trained, also within DistributedDataParallel or peft's own wrapper.

        Raises:
            Refused: if it has no layer of that name.
            Told: where the network has no cross-attention that MemGuard knows, is compiled, or was not called.

        """
        from .. import training_host

        self._scores = None
        with training_host.reading(unwrapped(network)) as found:
            token = READING.set(True)
            try:
                yield
            finally:
                READING.reset(token)
            projected = found.latest()
        name = self.layer or default_layer(tuple(projected))
        if name not in projected:
            raise Refused(f"no layer is called {name!r}; there are: {', '.join(projected)}")
        self._scores = entropy(mass(projected[name].probabilities()))

    def __call__(self, names: Sequence[Any] | None = None, timesteps: Tensor | None = None) -> Tensor:
        """Return the weights of the batch that was read, [B].

        Args:
            names: of the pictures.
            timesteps: [B], or one for all; needed where each noise level has a threshold.

        Raises:
            RuntimeError: if none was.
            Refused: for timesteps that are no tensor of the batch.

        """
        if self._scores is None:
            raise RuntimeError("nothing was read; make the forward inside ``with filter.reading(network)``")
        scores, self._scores = self._scores, None
        return self.weigh(
            scores, names, None if timesteps is None else per_sample(timesteps, len(scores), scores.device)
        )
