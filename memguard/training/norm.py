"""Filter by the magnitude of the text-conditional prediction during training (Wen et al., ICLR 2024).

A sample whose noise gap || eps(x_t, caption) - eps(x_t, "") || is above a threshold is about to be memorized, and is
left out of this step. Cost: one more evaluation of each judged sample without gradient, about a third of a step's
forward and backward. What differs from the official code: the gap is an RMS over the latent elements, so that one
threshold serves all sizes (an L2 of 2 on SD1's 64 x 64 latents is .0156); it may be asked at high noise only; samples
may be weighed down and not left out.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..aside import aside
from ..troubles import Refused
from .log import Log
from .network import READING, called, dropping, precision, replaced, rows
from .weights import Above, Filter, Threshold, per_sample

log = logging.getLogger("memguard")

SHAPES = re.compile(r"shapes cannot be multiplied|must match|size mismatch|[Ee]xpected size")  # torch's words
POOLED = ("text_embeds", "pooled_projections")  # the caption beside its tokens: SDXL's, and SD3's and Flux's
MASKS = ("encoder_attention_mask", "encoder_hidden_states_mask")  # of its tokens: PixArt's and Sana's, Qwen-Image's


class NormFilter(Filter):
    """Weighs samples by the noise gap of the step's own prediction.

    Args:
        threshold: RMS of the gap, in the units of what the network predicts; or one for each noise level,
            ``{600: 0.05, 800: 0.08}``.
        empty: the encoded empty caption, [1, tokens, d].
        above: what happens above the threshold, "skip" or "scale".
        instead: what else of a call carries the caption, without one, one row each: for SDXL
            ``{"added_cond_kwargs": {"text_embeds": pooled}}``, for SD3 and Flux ``{"pooled_projections": pooled}``, for
            PixArt ``{"encoder_attention_mask": mask}``.
        least: timestep below which samples are not judged and cost nothing, in the units of the loop's timesteps; the
            gap tells most at high noise.
        log: takes scores step by step.

    """

    NAME = "text_noise_norm"

    def __init__(
        self,
        threshold: Threshold,
        empty: Tensor,
        above: Above = "skip",
        least: float = 0,
        log: Log | None = None,
        instead: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(threshold, above, log)
        if empty.ndim != 3 or len(empty) != 1:
            raise Refused(f"empty is of shape {list(empty.shape)}; give the encoded empty caption, [1, tokens, d]")
        self.empty, self.least = empty.detach(), least
        self.instead = dict(instead or {})
        _check_rows(self.instead)
        self.rows = 0  # of the network that judging cost
        self._warned = False

    def __call__(
        self,
        network: Any,
        noisy: Tensor,
        timesteps: Tensor,
        predicted: Tensor,
        names: Sequence[Any] | None = None,
        **more: Any,
    ) -> Tensor:
        """Return the weights of a batch, [B].

        Args:
            network: that is trained, as the loop calls it, wrapped or not; it is in the mode that the loop has put it
                into, so dropout of its own adds to the gap (a warning says so once).
            noisy: its input, [B, C, h, w].
            timesteps: [B], or one for all.
            predicted: what it has returned for the captions, [B, C, h, w], before anything is computed from that; its
                graph is left alone.
            names: of the pictures.
            more: what else the loop gives to the network, such as ``added_cond_kwargs``; tensors of B rows are cut to
                the judged samples, also within dicts, lists and tuples.

        Raises:
            Refused: if the pooled caption or its mask is among ``more`` and nothing is given ``instead``, for timesteps
                that are no tensor, where the network cannot take the empty caption, for a prediction that is not the
                network's own, and inside ``EntropyFilter.reading``.

        """
        self._check(network, more)
        steps = per_sample(timesteps, len(noisy), noisy.device)
        scores = torch.full((len(noisy),), math.nan, device=noisy.device)
        judged = (steps >= max(self.least, min(self.levels))).nonzero().flatten()
        if len(judged):
            text = self.empty.to(noisy.device, noisy.dtype).expand(len(judged), -1, -1)
            rest = replaced(rows(more, judged, len(noisy)), self.instead, len(judged), noisy)
            with torch.no_grad(), aside(network, noisy), precision(noisy, predicted):
                without = self._without(network, noisy[judged], steps[judged], text, rest)
            returned = [len(noisy), *without.shape[1:]]
            if list(predicted.shape) != returned:
                said = f"predicted is of shape {list(predicted.shape)}, and the network returns {returned}"
                raise Refused(f"{said}; give what the network returned")
            gap = predicted.detach()[judged].float() - without.float()
            scores[judged] = gap.flatten(1).pow(2).mean(1).sqrt()
            self.rows += len(judged)
        return self.weigh(scores, names, steps)

    def _without(self, network: Any, noisy: Tensor, steps: Tensor, text: Tensor, rest: Mapping[str, Any]) -> Tensor:
        try:
            return called(network, noisy, steps, text, rest)
        except RuntimeError as error:  # the loop's own call of the same network went well
            if not SHAPES.search(str(error)):
                raise
            said = f"empty is of shape {list(self.empty.shape)}, which the network cannot take where it took captions"
            raise Refused(f"{said}; encode the empty caption as the captions are ({error})") from error

    def _check(self, network: Any, more: Mapping[str, Any]) -> None:
        if READING.get():  # the last forward counts there, and ours would be it
            raise Refused("the entropy filter is reading; call the norm filter after its block")
        missing = set(_pooled(more)) - set(_pooled(self.instead))
        if missing:
            name = sorted(missing)[0]
            what = "masks the caption's tokens" if name in MASKS else "carries the caption too"
            raise Refused(f"{name} {what}; give the empty caption's as instead={{...}} to the filter")
        if not self._warned and dropping(network):
            self._warned = True
            log.warning("the network drops values at random, which adds to every noise gap; set dropout to 0")


def _pooled(given: Mapping[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        if isinstance(value, Mapping):
            yield from _pooled(value)
        elif name in POOLED + MASKS and value is not None:
            yield name


def _check_rows(instead: Mapping[str, Any]) -> None:
    for name, value in instead.items():
        if isinstance(value, Mapping):
            _check_rows(value)
        elif isinstance(value, Tensor) and value.ndim and len(value) != 1:
            said = f"{name} in instead is of shape {list(value.shape)}; give one row, that of the empty caption"
            raise Refused(said)
