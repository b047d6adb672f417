"""What stands in each column of a prompt, as the WebUI's own text engine splits it, and how other texts encode.

Part of the WebUI hosts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...attributions.moment import Encoded
from ...attributions.words import Token
from ...mitigations.edit import BOS, EOS, OTHER, PADDING, WORD
from ...records import Group

NUMBERS = {"bos": BOS, "word": WORD, "eos": EOS, "padding": PADDING}


def columns(engine: Any, text: str) -> list[Token]:
    """Return what stands in each column of a prompt.

    Args:
        engine: has ``tokenize_line``, ``id_start`` and ``id_end``.
        text: the prompt, with the WebUI's syntax for weights and embeddings.

    """
    chunks, _ = engine.tokenize_line(text)
    found: list[Token] = []
    ended = True
    for chunk in chunks:
        named = {fix.offset + 1 + i: fix.embedding for fix in chunk.fixes for i in range(int(fix.embedding.vectors))}
        first = {fix.offset + 1 for fix in chunk.fixes}
        tokens, start = list(chunk.tokens), len(found)
        ends = [i for i, token in enumerate(tokens) if i and token == engine.id_end and i not in named]
        last = ends[0] if ends else len(tokens)
        for i, (number, emphasis) in enumerate(zip(tokens, chunk.multipliers, strict=True)):
            column, weight = start + i, float(emphasis)
            if i in named:
                name = str(named[i].name)
                found.append(Token(column, name, name=name, opens=i in first, emphasis=weight))
                ended = True
            elif i == 0 or i >= last:
                group: Group = "bos" if i == 0 else "eos" if i == last else "padding"
                found.append(Token(column, "", number, group))
            else:
                word, ends_word = _piece(engine, number)
                found.append(Token(column, word, number, opens=ended, emphasis=weight))
                ended = ends_word
    return found


def _piece(engine: Any, number: int) -> tuple[str, bool]:
    """Return a token as the text has it, and whether a word ends there; "" where the tokenizer cannot tell."""
    tokenizer: Any = getattr(engine, "tokenizer", None)
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        ended = str(tokenizer.convert_ids_to_tokens(number)).endswith("</w>")
        return str(tokenizer.decode([number])).strip(), ended
    clip = getattr(sys.modules.get("open_clip.tokenizer"), "_tokenizer", None)  # of A1111's SD2 and SDXL
    if clip is None:
        return "", True
    text = str(clip.decode([number]))
    return text.strip(), text.endswith(" ")


def groups(engine: Any, text: str) -> list[int]:
    """Return what stands in each column of a prompt, in the numbers of ``mitigations.edit``."""
    return [NUMBERS[token.group] for token in columns(engine, text)]


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


def endings(engine: Any, texts: Sequence[str], columns: int) -> Tensor | None:
    """Return which columns of prompts hold EOS and padding, bool [B, columns]; None where the engine cannot tell."""
    known = table(engine, texts, columns)
    return None if known is None else (known == EOS) | (known == PADDING)


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
