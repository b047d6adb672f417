"""Causal effect of a word: how far the score falls when the word is taken out of the prompt. Forward only.

The prompt is encoded again without the word (or with another word in its place), and all variants are predicted
together, from the same latents. So the effect is that of the edit that a person would make: later words move up, and a
causal text encoder sees a different past. BOS, EOS and padding are no words: their columns get what the reference
prompt has there. Works with any weights, also quantised ones, since nothing is differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..records import TokenSpan
from .moment import Encoded, Moment

UNIT = "fall of the score without it"
ROWS = 32  # of one forward; halved when memory runs out

Encode = Callable[[list[str]], Sequence[Encoded]]


def variants(prompt: str, spans: Sequence[TokenSpan], substitute: str = "") -> list[str | None]:
    """Return the prompt without each span in turn; None for a span that is no word of the prompt's text."""
    texts: list[str | None] = []
    for span in spans:
        if span.group != "word" or span.place is None or not span.columns:
            texts.append(None)
            continue
        start, end = span.place
        before, after = prompt[:start], prompt[end:]
        if not substitute and (not before or before.endswith(" ")):
            after = after.removeprefix(" ")
        texts.append(before + substitute + after)
    return texts


def effects(
    moments: Sequence[Moment], spans: Sequence[TokenSpan], prompt: str, encode: Encode, substitute: str = ""
) -> Tensor:
    """Return how far the score of each image falls without each span.

    Args:
        moments: the scored steps.
        spans: of the prompt.
        prompt: its text.
        encode: from texts to the encoded prompts, one row each; their lengths may differ.
        substitute: what stands in place of a word; "" drops it.

    Returns:
        float32 [steps, spans, B]; NaN where a span cannot be taken out (no columns, or no reference prompt).

    """
    texts = variants(prompt, spans, substitute)
    known = [text for text in texts if text is not None]
    encoded = encode(known) if known else ()
    falls = []
    for moment in moments:
        rows = _variants(moment, spans, texts, encoded)
        after = torch.full((len(spans), moment.images), torch.nan)
        index = [i for i, row in enumerate(rows) if row is not None]
        if index:
            after[index] = _predict(moment, [row for row in rows if row is not None]).cpu()
        falls.append(moment.scores.cpu() - after)
    return torch.stack(falls)


def _variants(
    moment: Moment, spans: Sequence[TokenSpan], texts: list[str | None], encoded: Sequence[Encoded]
) -> list[Encoded | None]:
    """Return one prompt of B rows per span."""
    found: list[Encoded | None] = []
    rows = iter(encoded)
    for span, text in zip(spans, texts, strict=True):
        if text is not None:
            found.append(next(rows).expand(moment.images))
        elif span.group != "word" and moment.reference is not None:
            found.append(_swapped(moment.prompt, moment.reference, span))
        else:
            found.append(None)
    return found


def _swapped(prompt: Encoded, reference: Encoded, span: TokenSpan) -> Encoded | None:
    """Return the prompt with the columns of a span taken from the reference prompt."""
    if span.group == "pooled":
        return Encoded(prompt.text, reference.pooled)
    columns = [column for column in span.columns if column < reference.text.shape[1]]
    if not columns:
        return None
    text = prompt.text.clone()
    text[:, columns] = reference.text[:, columns].to(text)
    return Encoded(text, prompt.pooled)


def _predict(moment: Moment, prompts: Sequence[Encoded]) -> Tensor:
    """Return the scores [V, B] of several prompts, as many at a time as memory allows."""
    size = min(max(1, ROWS // moment.images), len(prompts))
    while True:
        try:
            parts = _batches(prompts, size)
            with torch.no_grad():
                return torch.cat([moment.norms(moment.predict(_together(part))) for part in parts])
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2


def _batches(prompts: Sequence[Encoded], size: int) -> list[list[Encoded]]:
    """Return neighbours of the same length together, at most ``size`` of them."""
    found: list[list[Encoded]] = []
    for prompt in prompts:
        if found and len(found[-1]) < size and found[-1][0].text.shape == prompt.text.shape:
            found[-1].append(prompt)
        else:
            found.append([prompt])
    return found


def _together(prompts: Sequence[Encoded]) -> Encoded:
    pooled = [p.pooled for p in prompts if p.pooled is not None]
    return Encoded(torch.cat([p.text for p in prompts]), torch.cat(pooled) if pooled else None)
