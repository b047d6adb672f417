"""The words of a prompt, weighed at one model call: every part of a combined conditioning has rows of its own.

``take`` does what needs the network and works while a sampler holds it; ``finish`` does what needs the text encoder and
must wait until the sampler is done, since the two may not fit into the GPU's memory together.

Part of the ComfyUI host.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor

from ...aside import aside
from ...attributions import gradient, weighing
from ...attributions.moment import Encoded, Moment
from ...records import Attribution, StepEvidence
from ...troubles import Told, careful, in_words
from ..inference import differentiable, normal
from .calls import Call, Cond, as_encoded, leading, normal_cond
from .inputs import Pullback, input_gradients, is_open
from .naming import Namer, Segment

log = logging.getLogger("memguard")

Method = Literal["gradient", "ablation", "attention"]
Variants = Mapping[tuple[int, str], Encoded]  # (part, text) -> the part with that text in place of its own
NO_INPUT = "a textual inversion has no embedding of its own words; weights are of the encoded prompt"
NO_WAY_BACK = "the model makes something of its own of the encoded prompt; weights are of that"
NO_ENCODER = "the text encoder gives no gradient ({}); weights are of the encoded prompt"
NOT_ASKED = "the model could not be asked without the words ({})"
NO_TEXT = "no known text encodes to this prompt, so its words have no names; connect the CLIP that encoded it"
NO_PART = "no known text encodes to a part of this prompt, so its words have no names"
NOT_YET = "a part of the prompt does not act at the first step; it weighs nothing there"


@dataclass
class _Part:
    """What was taken of one conditioning."""

    vectors: Tensor  # [1, tokens, d]
    moment: Moment
    active: bool
    as_encoded: bool  # whether the model gets the vectors themselves
    gradient: tuple[Tensor, Tensor | None] | None = None
    masses: dict[str, Tensor] | None = None
    weighed: Attribution | None = None  # where the network had to be asked about each word


class Weighing:
    """Weighs the words of one model call.

    Args:
        namer: of the texts behind the conditionings.
        method: how to weigh.
        respect_to: of method "gradient": the words' own embeddings, or the encoded prompt.
        substitute: of method "ablation": in place of a word; "" drops it.

    Attributes:
        failed: why there is no gradient, in words; "" where there is one.

    """

    def __init__(self, namer: Namer, method: Method, respect_to: str = "input", substitute: str = "") -> None:
        self.namer, self.method, self.respect_to, self.substitute = namer, method, respect_to, substitute
        self.failed = ""
        self._parts: list[_Part] = []

    def take(
        self,
        call: Call,
        conds: Sequence[Cond],
        reference: Cond | None,
        evidence: StepEvidence,
        masses: Mapping[int, dict[str, Tensor]] | None = None,
        variants: Variants | None = None,
    ) -> None:
        """Take one model call.

        Args:
            call: the model call.
            conds: conditionings of the prompt, processed by the sampler.
            reference: a conditioning of the reference prompt.
            evidence: what was predicted.
            masses: of method "attention": part -> layer -> mass [B, tokens].
            variants: of method "ablation": the prompts without each word.

        """
        other = None if reference is None else call.encoded(reference)
        for index, cond in enumerate(conds):
            moment = Moment(evidence, call.encoded(cond), other, call.again(conds, index))
            part = _Part(cond["cross_attn"], moment, call.active(cond), as_encoded(cond))
            self._parts.append(part)
            if self.method == "gradient" and part.active and not self.failed:
                with careful(self._fails, InterruptProcessingException):
                    text, pooled = _gradient(call, conds, index, moment)
                    part.gradient = text[:, leading(cond) :], pooled
            if masses is not None:
                part.masses = masses.get(index)
            if variants is not None and part.active:
                with careful(self._fails, InterruptProcessingException):
                    part.weighed = self._by_ablation(index, part, variants)

    def _fails(self, error: Exception) -> None:
        """Keep why there is no gradient (weights, kernels, nodes of others): another method stands in."""
        if not isinstance(error, Told):
            log.warning("gradient: %s: %s", type(error).__name__, error)
        # what to do about it is said by whoever lets another method stand in
        self.failed = (
            "not enough memory" if isinstance(error, torch.OutOfMemoryError) else in_words(error).split(";")[0]
        )

    def finish(self) -> Attribution:
        """Name the words and weigh them."""
        if not self._parts:
            return Attribution(self.method, status="the sampler made no model call")
        if self.method == "ablation" and self.failed:
            return Attribution(self.method, status=NOT_ASKED.format(self.failed))
        found = [part.weighed or self._weigh(part) for part in self._parts]
        if all(NO_PART in each.notes for each in found):
            return Attribution(self.method, score=found[0].score, status=NO_TEXT)
        return weighing.join(found)

    def _start(self, part: _Part) -> tuple[Attribution, tuple[Segment, ...]]:
        segments = self.namer.segments(part.vectors)
        spans = [span for segment in segments for span in segment.spans(self.namer.clip)]
        found = weighing.start(self.method, spans, [part.moment])
        if any(segment.text is None for segment in segments):
            found = replace(found, notes=(*found.notes, NO_PART))
        return found, segments

    def _weigh(self, part: _Part) -> Attribution:
        found, segments = self._start(part)
        if not part.active:
            return weighing.silent(found, part.vectors.shape[1], NOT_YET)
        if self.method == "attention":
            return weighing.by_attention(found, [part.masses or {}])
        assert part.gradient is not None
        if self.respect_to == "encoded" or any(segment.text is None for segment in segments):
            return weighing.by_gradient(found, [part.gradient])
        note = NO_INPUT
        if not part.as_encoded:
            note = NO_WAY_BACK
        elif all(is_open(self.namer.clip, segment.text or "") for segment in segments):
            with careful(self._fails, InterruptProcessingException):
                return weighing.by_gradient(found, [part.gradient], self._pullback(segments))
            note = NO_ENCODER.format(self.failed)
        return weighing.by_gradient(replace(found, notes=(*found.notes, note)), [part.gradient])

    def _pullback(self, segments: Sequence[Segment]) -> Pullback:
        def pullback(text: Tensor, pooled: Tensor | None) -> Tensor:
            squares = torch.zeros(text.shape[:2])
            for number, segment in enumerate(segments):
                assert segment.text is not None
                with input_gradients(self.namer.clip, segment.text) as way:
                    # the pooled vector of joined prompts is the first one's
                    own = way(text[:, segment.columns], pooled if number == 0 else None)
                squares[:, segment.columns] = own.to(squares)
            return squares

        return pullback

    def _by_ablation(self, index: int, part: _Part, variants: Variants) -> Attribution:
        found, segments = self._start(part)

        def encode(texts: list[str]) -> list[Encoded]:
            return [variants[index, text] for text in texts]

        pieces = []
        for segment in segments:
            inside = range(segment.start, segment.start + segment.count)
            # the pooled vector, and words that were cut off, have no columns
            own = [s for s in found.spans if set(s.columns) & set(inside) or not (s.columns or segment.start)]
            piece, text = replace(found, spans=tuple(own)), segment.text or ""
            pieces.append(weighing.by_ablation(piece, [part.moment], text, encode, self.substitute))
        return weighing.together(pieces)


def _gradient(call: Call, conds: Sequence[Cond], index: int, moment: Moment) -> tuple[Tensor, Tensor | None]:
    with aside(call.x), differentiable(call.guider.inner_model.diffusion_model):
        evidence = replace(
            moment.evidence,
            noise_cond=normal(moment.evidence.noise_cond),
            noise_uncond=normal(moment.evidence.noise_uncond),
        )
        pooled = None if moment.prompt.pooled is None else normal(moment.prompt.pooled)
        prompt = Encoded(normal(moment.prompt.text), pooled)
        again = call.normal().again([normal_cond(cond) for cond in conds], index)
        return gradient.prompt_gradient(Moment(evidence, prompt, None, again))
