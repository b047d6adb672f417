"""What a run that is sampled anyway tells about its words and places.

Attention is read while the sampler works; the words' gradient is taken at the first model call, when the run is flagged
or whenever that was asked for; words get their names when the sampler is done.

Part of the ComfyUI host.
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
LEFT_OUT = (
    "maps: the attention of {} layers was left out: another node, or the model itself, changes their rows or their size"
)
NO_WORDS = "maps: no attention was read for the words"
NO_ENDING = "map bright_ending is missing: the attention of the last step: {}"
ODD = "maps of another size than the latent are missing: {}"
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
        self._tried = False
        self._weighing: Weighing | None = None
        self._note = ""
        self._failed = ""

    def wants(self, flagged: bool) -> bool:
        """Whether a run is to be explained now."""
        return not self._tried and (self.when == "always" or (self.when == "flagged" and flagged))

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
        """Weigh the words at the first model call, by gradient; where that fails, by attention.

        Raises:
            Unknown: for a model that takes its prompt in a way that MemGuard does not know.

        """
        self._tried = True
        namer = Namer(self.clip, ())
        weighing = Weighing(namer, "gradient")
        weighing.take(call, conds, reference, evidence)
        if weighing.failed and not masses:
            self._failed = NOTHING.format(weighing.failed)
        elif weighing.failed:
            self._note = STOOD_IN.format(weighing.failed)
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


def maps(
    reader: AttentionReader, spans: Sequence[TokenSpan], size: tuple[int, int]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the maps of a run that was read, float32 [B, h, w] on the CPU, and lines on what is missing.

    The maps are bright_ending, and "word <index of span>".

    Args:
        reader: with maps.
        spans: of the attribution.
        size: (h, w) of the latent; the map of a part with an area is zero outside of it.

    """
    found: dict[str, Tensor] = {}
    endings = []
    missing = dict[str, None]()
    for part, tally in reader.tallies.items():
        own = [(index, span) for index, span in enumerate(spans) if span.part == part and span.columns]
        eos = [column for _, span in own if span.group == "eos" for column in span.columns]
        place = reader.places.get(part)
        left = reader.left | tally.left
        if left:
            missing[LEFT_OUT.format(len(left))] = None
        try:
            for index, span in own:
                if span.group == "word":
                    found[f"word {index}"] = _placed(tally.word(span.columns), size, place)
        except ValueError:
            missing[NO_WORDS] = None
        if not eos:
            continue
        try:
            if part not in reader.masses:  # the last call was not read, and an earlier one is not the last step
                raise ValueError
            endings.append(_placed(tally.bright_ending(eos), size, place))
        except ValueError:
            missing[NO_ENDING.format(reader.reason or "it was not read")] = None
    if endings:
        found["bright_ending"] = torch.stack(endings).mean(0)
    fits = {name: values for name, values in found.items() if tuple(values.shape[-2:]) == tuple(size)}
    if len(fits) < len(found):
        missing[ODD.format(", ".join(name for name in found if name not in fits))] = None
    return fits, tuple(missing)


def _placed(values: Tensor, size: tuple[int, int], place: tuple[int, ...] | None) -> Tensor:
    values = values.float().cpu()
    if place is None or values.shape[-2:] == size:
        return values
    height, width, y, x = place
    whole = values.new_zeros((len(values), *size))
    whole[:, y : y + height, x : x + width] = values
    return whole
