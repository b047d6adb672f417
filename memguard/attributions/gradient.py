"""Token significance: how steeply the noise gap rises with each token's embedding (Wen et al., ICLR 2024, section 4.2).

SS_i = || d d_j / d e_i ||_2 over the embedding axis, per image j, then the mean over images and over the scored steps
of the guided trajectory. A word of several tokens, and a group such as the padding, is one variable: the norm is taken
over all its columns. What differs from the official code, which ``parity="official"`` reproduces: its loss is the norm
of the whole batch, its gradient is divided by 2 n (the rows of both halves, of which only one per image is not zero),
and from the second step on it follows an anti-guided trajectory, because its two halves are swapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..records import TokenSpan
from ..troubles import NoGradient, NotFinite
from .moment import Encoded, Moment

UNIT = "L2 norm of d score / d embedding"
PARITIES = (None, "official")
# a model, or a node or hook of others within it, that computes without a graph: no word would weigh anything
NO_WAY = "no gradient reaches the prompt: the model, or another extension within it, computes without gradients"
NO_GAP = "the prompt is predicted exactly as what it is compared with, so no word weighs anything"
NO_GRAPH = "the model cannot be differentiated: something in it computes in place or without a derivative"
SCALE = 2.0**12  # of the loss: half-precision gradients of single elements would fall below what float16 can hold

Pullback = Callable[[Tensor, Tensor | None], Tensor]


def prompt_gradient(moment: Moment, parity: Literal["official"] | None = None) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of the score of each image with respect to what the model was conditioned on.

    One forward and one backward over the images, whatever their number: rows do not depend on each other.

    Returns:
        float32 gradients [B, tokens, d] and, with a pooled vector, [B, p]. With ``parity`` [1, tokens, d], of the norm
        of the whole batch with respect to the one embedding that all images share, divided by 2 B.

    Raises:
        NoGradient: if the model cannot be differentiated, or the gradient is missing, or zero everywhere.
        NotFinite: if the gradient holds NaN or infinity, also without a scaled loss.

    """
    for scale in (SCALE, 1.0):
        try:
            gradients = _scaled(moment, scale, parity)
        except (torch.OutOfMemoryError, NoGradient):
            raise
        except RuntimeError as error:
            raise NoGradient(NO_GRAPH) from error
        if not any(bool(g.any()) for g in gradients if g is not None):
            raise NoGradient(NO_WAY if bool(moment.scores.any()) else NO_GAP)
        if all(bool(torch.isfinite(g).all()) for g in gradients if g is not None):
            return gradients
    raise NotFinite("the gradient holds NaN or infinity; run the model in float32, or use method ablation")


def _scaled(moment: Moment, scale: float, parity: str | None) -> tuple[Tensor, Tensor | None]:
    with torch.enable_grad():
        # float32 leaves: a host casts them to the model's own type, so gradients of all uses add up in float32
        text = moment.prompt.text.detach().float().clone().requires_grad_(True)
        pooled = moment.prompt.pooled
        if pooled is not None:
            pooled = pooled.detach().float().clone().requires_grad_(True)
        norms = moment.norms(moment.predict(Encoded(text, pooled)))[0]
        if not norms.requires_grad:
            raise NoGradient(NO_WAY)
        loss = torch.linalg.vector_norm(norms) if parity else norms.sum()
        leaves = [text] if pooled is None else [text, pooled]
        gradients = torch.autograd.grad(loss * scale, leaves, allow_unused=True)
    found = [torch.zeros_like(leaf) if g is None else g / scale for leaf, g in zip(leaves, gradients, strict=True)]
    if parity:
        found = [g.sum(0, keepdim=True) / (2 * moment.images) for g in found]
    return found[0], found[1] if len(found) > 1 else None


def significance(
    gradients: Sequence[tuple[Tensor, Tensor | None]], pullback: Pullback | None = None
) -> tuple[Tensor, Tensor]:
    """Return the significance of every token column.

    Args:
        gradients: ``prompt_gradient`` of each scored step.
        pullback: from the gradient with respect to the encoded prompt ([B, tokens, d], [B, p] or None) to the squared
            norms of that with respect to the input embeddings of the text encoders, [B, tokens].

    Returns:
        squared norms [steps, B, tokens] and, of the pooled vector, [steps, B]; roots are taken by ``by_span``.

    Raises:
        NoGradient: if all of them are 0: a score that no word acts on is not one, so the way back is broken.

    """
    tokens, vectors = [], []
    for text, pooled in gradients:
        tokens.append(text.pow(2).sum(-1) if pullback is None else pullback(text, pooled))
        vectors.append(torch.zeros(len(text)) if pooled is None else pooled.pow(2).sum(-1))
    found, vector = torch.stack(tokens).cpu(), torch.stack(vectors).cpu()
    if not bool(found.any() or (pullback is None and vector.any())):
        raise NoGradient(NO_WAY)
    return found, vector


def by_span(tokens: Tensor, vector: Tensor, spans: Sequence[TokenSpan]) -> tuple[float, ...]:
    """Return one weight per span: the norm over all its columns, mean over images and steps."""
    weights = []
    for span in spans:
        squares = vector if span.group == "pooled" else tokens[..., list(span.columns)].sum(-1)
        weights.append(float(squares.sqrt().mean()))
    return tuple(weights)
