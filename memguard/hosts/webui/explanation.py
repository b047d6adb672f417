"""What a run that is sampled anyway tells about its words and places.

The words' gradient is taken at the first model call, where the run is flagged or that was asked for; attention is read
from there on. Words get their names when the sampler is done, since that needs the text encoder.

Part of the WebUI hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...attributions import gradient, weighing, words
from ...attributions.maps import MapTally
from ...attributions.moment import Encoded, Moment
from ...records import Attribution, StepEvidence, TokenSpan
from ...troubles import in_words
from . import tokens
from .inputs import Closed, input_gradients

When = Literal["flagged", "always", "never"]
STOOD_IN = "the gradient failed ({}); attention stood in"
NOTHING = "the gradient failed ({}), and no attention was read"
MIXED = "the gradient failed ({}), and attention does not stand in where there are several prompts"
NO_TEXT = "the text encoder's tokens are not known, so rows are columns of the prompt"
ENCODED = "weights are of the encoded prompt, not of the words' own embeddings"


@dataclass(frozen=True)
class Asked:
    """What a host knows of the prompts of a model call.

    Attributes:
        prompt: all rows that carry a prompt, [R, tokens, d].
        parts: each text with its rows.
        engine: the WebUI's text engine; None where it is not known.
        predict: from such rows to the prediction of each image, [B, C, h, w], in the units of the evidence.
        gradients: lets autograd through the network, for the time of the block.
        following: lets autograd through the text encoder, for the time of the block.

    """

    prompt: Encoded
    parts: tuple[tuple[str, tuple[int, ...]], ...]
    engine: Any
    predict: Callable[[Encoded], Tensor]
    gradients: Callable[[], AbstractContextManager[Any]]
    following: Callable[[], AbstractContextManager[Any]]


def grouped(texts: list[list[str]], row: Callable[[int, int], int]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return each text with its rows.

    Args:
        texts: of each image its sub-prompts.
        row: from the numbers of image and sub-prompt to the row of the call.

    """
    found: dict[str, list[int]] = {}
    for image, parts in enumerate(texts):
        for part, text in enumerate(parts):
            found.setdefault(text, []).append(row(image, part))
    return tuple((text, tuple(rows)) for text, rows in found.items())


class Explanation:
    """The words and maps of one pass.

    Args:
        when: which runs to explain.

    """

    def __init__(self, when: When) -> None:
        self.when = when
        self.rows = 0  # of the network that the gradient cost
        self.taken = False
        self._asked: Asked | None = None
        self._moment: Moment | None = None
        self._gradient: tuple[Tensor, Tensor | None] | None = None
        self._masses: Mapping[str, Tensor] = {}
        self._why = ""

    def wants(self, flagged: bool) -> bool:
        """Whether a run is to be explained now."""
        return not self.taken and (self.when == "always" or (self.when == "flagged" and flagged))

    def take(self, asked: Asked, evidence: StepEvidence, masses: Mapping[str, Tensor]) -> None:
        """Weigh the prompt's columns at the first model call.

        Args:
            asked: the prompts of the call.
            evidence: of the call.
            masses: attention of the call, layer -> [B, tokens]; none where it was not read.

        """
        self.taken, self._asked, self._masses = True, asked, masses
        with asked.gradients():
            cond, uncond = (each.detach().clone() for each in (evidence.noise_cond, evidence.noise_uncond))
            pooled = None if asked.prompt.pooled is None else asked.prompt.pooled.detach().clone()
            prompt = Encoded(asked.prompt.text.detach().clone(), pooled)
            self._moment = Moment(replace(evidence, noise_cond=cond, noise_uncond=uncond), prompt, None, asked.predict)
            try:
                self._gradient = gradient.prompt_gradient(self._moment)
                self.rows += len(prompt.text)
            except torch.OutOfMemoryError:
                self._why = "not enough memory"
            except (RuntimeError, FloatingPointError) as error:  # quantised weights have no derivative
                self._why = in_words(error)

    def words(self) -> Attribution | None:
        """Return the attribution, None for a run that was not explained; the sampler must be done."""
        asked, moment = self._asked, self._moment
        if asked is None or moment is None:
            return None
        if self._gradient is None and (not self._masses or len(asked.parts) > 1):
            why = MIXED if self._masses else NOTHING
            return Attribution("gradient", status=why.format(self._why))
        return weighing.join([self._part(asked, moment, text, list(rows)) for text, rows in asked.parts])

    def _part(self, asked: Asked, moment: Moment, text: str, rows: list[int]) -> Attribution:
        spans = named(asked.engine, text, moment.prompt.text.shape[1])
        notes = () if asked.engine is not None else (NO_TEXT,)
        if self._gradient is None:
            found = weighing.start("attention", spans, [moment])
            found = replace(found, notes=(*found.notes, *notes, STOOD_IN.format(self._why)))
            return weighing.by_attention(found, [dict(self._masses)])
        own, pooled = self._gradient
        part = own[rows], None if pooled is None else pooled[rows]
        found = weighing.start("gradient", spans, [moment])
        found = replace(found, notes=(*found.notes, *notes))
        try:
            if asked.engine is None:
                raise Closed
            with asked.following(), input_gradients(asked.engine, text, own.shape[-1]) as pullback:
                return weighing.by_gradient(found, [part], pullback)
        except Closed:
            return weighing.by_gradient(replace(found, notes=(*found.notes, ENCODED)), [part])


def named(engine: Any, text: str, columns: int) -> tuple[TokenSpan, ...]:
    """Return the words and groups of a prompt, or its bare columns where they are not known."""
    if engine is None or not hasattr(engine, "tokenize_line"):
        return tuple(TokenSpan(f"column {column}", (column,)) for column in range(columns))
    return words.spans(tokens.columns(engine, text), text)


def maps(tally: MapTally, spans: tuple[TokenSpan, ...]) -> dict[str, Tensor]:
    """Return the maps of a run that was read, float32 [B, h, w] on the CPU: bright_ending, and "word <span>"."""
    found: dict[str, Tensor] = {}
    endings = [column for span in spans if span.group == "eos" for column in span.columns]
    if endings:
        found["bright_ending"] = tally.bright_ending(endings).float().cpu()
    for index, span in enumerate(spans):
        if span.group == "word" and span.columns:
            found[f"word {index}"] = tally.word(span.columns).float().cpu()
    return found
