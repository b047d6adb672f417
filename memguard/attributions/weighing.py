"""From the scored model calls to an Attribution, whatever the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..records import Attribution, TokenSpan
from ..troubles import NoGradient
from . import ablation, attention, gradient
from .moment import Moment

NO_MEMORY = "not enough memory for gradients; ablation stood in"
LEFT = (torch.OutOfMemoryError, NoGradient)  # after which another method stands in for gradients


def start(method: str, spans: Sequence[TokenSpan], moments: Sequence[Moment]) -> Attribution:
    """Return an attribution that has its words and its score, and no weights yet."""
    if moments[0].prompt.pooled is not None:
        spans = (*spans, TokenSpan("", (), "pooled"))
    cut = [span.text for span in spans if span.group == "word" and not span.columns]
    notes = (f"cut off, the model never sees: {' '.join(cut)}",) if cut else ()
    score = float(torch.stack([moment.scores for moment in moments]).mean())
    return Attribution(method, tuple(spans), score=score, notes=notes)


def stood_in(error: BaseException, instead: str = "ablation") -> str:
    """Return the note of an attribution whose gradients ended in one of ``LEFT``."""
    return f"{error}; {instead} stood in" if isinstance(error, NoGradient) else NO_MEMORY.replace("ablation", instead)


def join(parts: Sequence[Attribution]) -> Attribution:
    """Return one attribution of the parts of a combined prompt; every part keeps rows of its own."""
    first = parts[0]
    spans = [replace(span, part=index) for index, part in enumerate(parts) for span in part.spans]
    layers = {name: sum((part.layers[name] for part in parts), ()) for name in first.layers}
    return replace(
        first,
        spans=tuple(spans),
        weights=sum((part.weights for part in parts), ()),
        token_scores=sum((part.token_scores for part in parts), ()),
        layers=layers,
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def together(pieces: Sequence[Attribution]) -> Attribution:
    """Return one attribution of pieces that lie in different columns of the same prompt."""
    return replace(
        pieces[0],
        spans=sum((piece.spans for piece in pieces), ()),
        weights=sum((piece.weights for piece in pieces), ()),
        token_scores=tuple(map(math.fsum, zip(*(piece.token_scores for piece in pieces), strict=True))),
    )


def silent(found: Attribution, columns: int, note: str) -> Attribution:
    """Return a part that does not act at the scored step: no weight anywhere, and a note."""
    zeros = (0.0,) * len(found.spans)
    return replace(found, weights=zeros, token_scores=(0.0,) * columns, notes=(*found.notes, note))


def by_gradient(
    found: Attribution,
    gradients: Sequence[tuple[Tensor, Tensor | None]],
    pullback: gradient.Pullback | None = None,
) -> Attribution:
    """Weigh by token significance. With a pullback the pooled vector's way is part of each word's."""
    tokens, vector = gradient.significance(gradients, pullback)
    spans = [span for span in found.spans if span.group != "pooled" or pullback is None]
    return replace(
        found,
        spans=tuple(spans),
        weights=gradient.by_span(tokens, vector, spans),
        token_scores=tuple(tokens.sqrt().mean((0, 1)).tolist()),
        unit=gradient.UNIT,
    )


def by_ablation(
    found: Attribution, moments: Sequence[Moment], prompt: str, encode: ablation.Encode, substitute: str = ""
) -> Attribution:
    """Weigh by how far the score falls; what cannot be taken out changes nothing."""
    falls = ablation.effects(moments, found.spans, prompt, encode, substitute).mean((0, 2))
    weights = falls.nan_to_num(nan=0.0).tolist()
    scores = [0.0] * moments[0].prompt.text.shape[1]
    for span, weight in zip(found.spans, weights, strict=True):
        for column in span.columns:
            scores[column] = weight
    return replace(found, weights=tuple(weights), token_scores=tuple(scores), unit=ablation.UNIT)


def by_attention(found: Attribution, steps: Sequence[dict[str, Tensor]]) -> Attribution:
    """Weigh by the share of attention: masses [B, tokens] by layer, of each scored step."""
    mean = {name: torch.stack([step[name] for step in steps]).mean(0) for name in steps[0]}
    spans = tuple(span for span in found.spans if span.group != "pooled")
    everywhere = torch.stack(list(mean.values())).mean(0)
    return replace(
        found,
        spans=spans,
        weights=attention.shares(everywhere, spans),
        token_scores=tuple(everywhere.mean(0).tolist()),
        unit=attention.UNIT,
        layers={name: attention.shares(values, spans) for name, values in mean.items()},
    )
