"""What stands in each column of a prompt, as the WebUI's own text engine splits it, and how other texts encode.

Part of the WebUI hosts; may import: memguard.attributions, memguard.mitigations, torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...attributions.moment import Encoded
from ...mitigations.edit import BOS, EOS, OTHER, PADDING, WORD


def groups(engine: Any, text: str) -> list[int]:
    """Return what stands in each column of a prompt.

    Args:
        engine: has ``tokenize_line``, ``id_start`` and ``id_end``.
        text: the prompt, with the WebUI's syntax for weights and embeddings.

    """
    chunks, _ = engine.tokenize_line(text)
    found: list[int] = []
    for chunk in chunks:
        taken = {fix.offset + 1 + i for fix in chunk.fixes for i in range(len(fix.embedding.vec))}
        tokens = list(chunk.tokens)
        ends = [i for i, token in enumerate(tokens) if i and token == engine.id_end and i not in taken]
        last = ends[0] if ends else len(tokens)
        found += [BOS if i == 0 else WORD if i < last else EOS if i == last else PADDING for i in range(len(tokens))]
    return found


def short(engine: Any, text: str) -> bool:
    """Return whether a prompt fills one chunk only; False where the engine cannot tell."""
    return hasattr(engine, "tokenize_line") and len(engine.tokenize_line(text)[0]) == 1


def table(engine: Any, texts: Sequence[str], columns: int) -> Tensor | None:
    """Return what stands in the columns of prompts, int8 [B, columns]; None where the engine cannot tell."""
    if engine is None or not hasattr(engine, "tokenize_line"):
        return None
    rows = [groups(engine, text) for text in texts]
    if any(len(row) > columns for row in rows):
        return None
    return torch.tensor([row + (columns - len(row)) * [OTHER] for row in rows], dtype=torch.int8)


@contextmanager
def padded(engine: Any, padding: int | None) -> Iterator[None]:
    """Let the engine fill prompts up with another token for the time of the block."""
    if padding is None:
        yield
        return
    before = engine.id_pad
    engine.id_pad = padding
    try:
        yield
    finally:
        engine.id_pad = before


def encoded(made: Any) -> Encoded:
    """Return what the host encoded: a tensor, or a dictionary of tokens and vector."""
    return Encoded(made["crossattn"], made["vector"]) if isinstance(made, dict) else Encoded(made)


def like(made: Any, prompt: Encoded) -> Any:
    """Return a prompt in the form that the host gave one in."""
    if not isinstance(made, dict):
        return prompt.text.to(made)
    copy = type(made)(made)
    copy["crossattn"] = prompt.text.to(made["crossattn"])
    if prompt.pooled is not None:
        copy["vector"] = prompt.pooled.to(made["vector"])
    return copy
