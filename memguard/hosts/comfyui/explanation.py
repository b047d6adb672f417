"""What a run that is sampled anyway tells about its words and places.

Attention is read while the sampler works; the words' gradient is taken at the first model call, when the run is flagged
or whenever that was asked for; words get their names when the sampler is done.

Part of the ComfyUI host; may import: torch, memguard's core.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...records import Attribution, StepEvidence, TokenSpan
from . import tokens
from .attention import AttentionReader
from .calls import Call, Cond
from .naming import Namer
from .weighing import Weighing

When = Literal["flagged", "always", "never"]
STOOD_IN = "the gradient failed ({}); attention stood in"
NOTHING = "the gradient failed ({}), and no attention was read"


class Explanation:
    """The words and maps of one run.

    Args:
        clip: CLIP that encodes the prompt.
        texts: finds the texts of the prompt in the workflow.
        when: which runs to explain.

    """

    def __init__(self, clip: Any, texts: Callable[[], Sequence[str]], when: When) -> None:
        self.clip, self.texts, self.when = clip, texts, when
        self.rows = 0  # of the network that the gradient cost
        self._weighing: Weighing | None = None
        self._note = ""
        self._failed = ""

    def wants(self, flagged: bool) -> bool:
        """Whether a run is to be explained."""
        return self.when == "always" or (self.when == "flagged" and flagged)

    @property
    def taken(self) -> bool:
        """Whether the first model call was taken."""
        return self._weighing is not None

    def take(
        self,
        call: Call,
        conds: Sequence[Cond],
        reference: Cond | None,
        evidence: StepEvidence,
        masses: dict[int, dict[str, Tensor]],
    ) -> None:
        """Weigh the words at the first model call, by gradient; where that fails, by attention."""
        namer = Namer(self.clip, ())
        weighing = Weighing(namer, "gradient")
        why = "not enough memory"
        try:
            weighing.take(call, conds, reference, evidence)
        except (RuntimeError, FloatingPointError) as error:  # quantised weights have no derivative
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            weighing.lacks_memory = True
        if weighing.lacks_memory and not masses:
            self._failed = NOTHING.format(why)
        elif weighing.lacks_memory:
            self._note = STOOD_IN.format(why)
            weighing = Weighing(namer, "attention")
            weighing.take(call, conds, reference, evidence, masses)
        else:
            # the gradient of one part is taken through the prediction of all parts
            self.rows += len(call.x) * sum(call.active(cond) for cond in conds) ** 2
        self._weighing = weighing

    def summary(self) -> Tensor | None:
        """Return which columns hold EOS and padding, bool [1, tokens]; None where the prompt's text is not known."""
        texts = list(self.texts())
        if len(texts) != 1:
            return None
        found = [token for part in tokens.columns(self.clip, texts[0]) for token in part]
        return torch.tensor([[token.group in ("eos", "padding") for token in found]])

    def words(self) -> Attribution | None:
        """Return the attribution; the sampler must be done, since this needs the text encoder."""
        if self._failed:
            return Attribution("gradient", status=self._failed)
        if self._weighing is None:
            return None
        self._weighing.namer = Namer(self.clip, self.texts())
        found = self._weighing.finish()
        return replace(found, notes=(*found.notes, self._note)) if self._note else found


def maps(reader: AttentionReader, spans: Sequence[TokenSpan], size: tuple[int, int]) -> dict[str, Tensor]:
    """Return the maps of a run that was read, float32 [B, h, w] on the CPU: bright_ending, and "word <index of span>".

    Args:
        reader: with maps.
        spans: of the attribution.
        size: (h, w) of the latent; the map of a part with an area is zero outside of it.

    """
    found: dict[str, Tensor] = {}
    endings = []
    for part, tally in reader.tallies.items():
        own = [(index, span) for index, span in enumerate(spans) if span.part == part and span.columns]
        eos = [column for _, span in own if span.group == "eos" for column in span.columns]
        if eos:
            endings.append(_placed(tally.bright_ending(eos), size, reader.places.get(part)))
        for index, span in own:
            if span.group == "word":
                found[f"word {index}"] = _placed(tally.word(span.columns), size, reader.places.get(part))
    if endings:
        found["bright_ending"] = torch.stack(endings).mean(0)
    return found


def _placed(values: Tensor, size: tuple[int, int], place: tuple[int, ...] | None) -> Tensor:
    values = values.float().cpu()
    if place is None or values.shape[-2:] == size:
        return values
    height, width, y, x = place
    whole = values.new_zeros((len(values), *size))
    whole[:, y : y + height, x : x + width] = values
    return whole
