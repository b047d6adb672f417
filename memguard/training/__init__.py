"""Training that memorizes less: filters by sample, captions that vary, and a meter.

Two lines in a loop that trains a diffusers network, one beside its forward and one in the place of its mean::

    weights = norm(unet, noisy, timesteps, predicted, names=batch["file"])
    loss = weighted(F.mse_loss(predicted, target, reduction="none"), weights)

A network's attention is read by ``memguard.training_host``.
"""

from .captions import Captions, text_noise
from .entropy import EntropyFilter
from .log import JsonLines, Scalars
from .meter import Gap, Meter
from .norm import NormFilter
from .weights import Seen, weighted

__all__ = [
    "Captions",
    "EntropyFilter",
    "Gap",
    "JsonLines",
    "Meter",
    "NormFilter",
    "Scalars",
    "Seen",
    "text_noise",
    "weighted",
]
