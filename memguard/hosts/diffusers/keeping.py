"""Keep the scored model calls of a run so that they can be made again, and what the maps need of all calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ...attributions import maps
from ...attributions.moment import Encoded, Moment
from ...detectors.text_noise_norm import gap_map
from ...records import StepEvidence, TokenSpan
from .batch import Seen
from .calls import Call
from .levels import level
from .projected import Reading
from .reader import Reader
from .rows import Prompts, Unscored

EVERY = 10**9  # steps: the run goes to its end


class Keeping(Reader):
    """A Reader that keeps the scored calls as Moments, and the attention of every call.

    Args:
        pipe: the pipeline that runs.
        prompts: what it encodes in this run.
        read: its cross-attention, if that is wanted.
        steps: calls to keep; the run ends there, unless maps are wanted.
        wanted: names of the maps.
        swapped: whether prompt and negative prompt have changed places.

    """

    def __init__(
        self,
        pipe: Any,
        prompts: Prompts,
        read: Reading | None,
        steps: int,
        wanted: Sequence[str] = (),
        swapped: bool = False,
    ) -> None:
        self.seen = Seen(EVERY if wanted else steps)
        super().__init__(pipe, self.seen, prompts, "negative", read=read)
        self.steps, self.wanted, self.swapped = steps, frozenset(wanted), swapped
        self.moments: list[Moment] = []
        self.layers: list[dict[str, Tensor]] = []  # mass by layer, of each scored step
        self._tally: maps.MapTally | None = None
        self._last: StepEvidence | None = None

    def _pair(self, call: Call, roles: list[str]) -> StepEvidence:
        if self.swapped:
            roles = ["prompt" if role == "negative" else "negative" for role in roles]
        return super()._pair(call, roles)

    def evidence(self, call: Call, rows: slice, reference: Tensor) -> StepEvidence:
        """Return the evidence of some rows of a call, and keep what explains it."""
        evidence = self._last = super().evidence(call, rows, reference)
        if self.read is not None and evidence.attention is None:
            raise Unscored(evidence.unread)
        if evidence.attention is not None and self.step < self.steps:
            self.layers.append(dict(evidence.attention))
        if len(self.moments) < self.steps:
            prompt, other = self.prompts.cond, self.prompts.uncond or self.prompts.wished
            if self.swapped:
                prompt, other = other, prompt
            assert prompt is not None
            self.moments.append(Moment(evidence, prompt, other, _again(self.pipe, call, rows)))
        return evidence

    def _read_attention(self, read: Reading, call: Call, rows: slice) -> dict[str, Tensor]:
        probabilities = super()._read_attention(read, call, rows)
        if self.wanted & {"bright_ending", "word"}:
            if self._tally is None:
                self._tally = maps.MapTally((call.x.shape[-2], call.x.shape[-1]))
            self._tally.add(probabilities)
        return probabilities

    def maps(self, spans: Sequence[TokenSpan]) -> dict[str, Tensor]:
        """Return the wanted maps, [h, w], mean over the images."""
        found: dict[str, Tensor] = {}
        if "noise_gap" in self.wanted and self._last is not None:
            found["noise_gap"] = gap_map(self._last)
        if self._tally is not None and "bright_ending" in self.wanted:
            eos = [column for span in spans if span.group == "eos" for column in span.columns]
            found["bright_ending"] = self._tally.bright_ending(eos)
        if self._tally is not None and "word" in self.wanted:
            for index, span in enumerate(spans):
                if span.group == "word" and span.columns:
                    found[f"word {index}"] = self._tally.word(span.columns)
        return {name: values.mean(0).cpu() for name, values in found.items()}


def _again(pipe: Any, call: Call, rows: slice) -> Callable[[Encoded], Tensor]:
    here = level(pipe.scheduler, call.timestep)

    def predict(prompt: Encoded) -> Tensor:
        prediction = call.repeat(rows, prompt)
        x = call.x[rows]
        return here.convert(prediction, x.repeat(len(prediction) // len(x), *(1,) * (x.ndim - 1)))

    return predict
