"""Which token stands in which column of a prompt that a CLIP of ComfyUI encodes: chunks, weights, embeddings.

Part of the ComfyUI host.
"""

from __future__ import annotations

import re
from typing import Any

from ...attributions.words import Token

EMBEDDING = re.compile(r"embedding:[^\s,:()]+")
SIDE_BY_SIDE = ("l", "g")  # encoders that share the columns (SDXL, SD3)


def encode(clip: Any, text: str) -> Any:
    """Return the CONDITIONING of a text."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def columns(clip: Any, text: str) -> list[list[Token]]:
    """Return the tokens of a prompt, one list per group of columns; chunks follow each other.

    Args:
        clip: as the checkpoint loader returns it.
        text: the prompt, with ComfyUI's syntax for weights and embeddings.

    """
    encoded = clip.tokenize(text, return_word_ids=True)
    parts: list[list[Token]] = []
    start = 0
    for key in _order(list(encoded)):
        tokens = _tokens(_tokenizer(clip.tokenizer, key), encoded[key], text, start)
        parts.append(tokens)
        start += len(tokens)
    return parts


def encoders(clip: Any, text: str) -> list[tuple[str, int, int]]:
    """Return the text encoders whose tokens the model sees: attribute of the text model, first column, columns."""
    encoded = clip.tokenize(text)
    found, start = [], 0
    seen = _order(list(encoded))
    for key in seen:
        count = sum(map(len, encoded[key]))
        found.append((_attribute(key), start, count))
        if key in SIDE_BY_SIDE and set(SIDE_BY_SIDE) <= set(encoded) and key == "l":
            found.append((_attribute("g"), start, count))
        start += count
    return found


def _order(keys: list[str]) -> list[str]:
    """Return one key per group of columns, in the order of the columns."""
    if set(keys) == {"l", "t5xxl"}:
        return ["t5xxl"]  # Flux: CLIP gives the pooled vector only
    if set(SIDE_BY_SIDE) <= set(keys):
        return ["l", *(key for key in keys if key not in SIDE_BY_SIDE)]
    return keys


def _attribute(key: str) -> str:
    return f"clip_{key}" if len(key) == 1 else key


def _tokenizer(tokenizers: Any, key: str) -> Any:
    return getattr(tokenizers, _attribute(key), None) or getattr(
        tokenizers, getattr(tokenizers, "clip", ""), tokenizers
    )


def _tokens(tokenizer: Any, chunks: list[list[tuple[Any, ...]]], text: str, start: int) -> list[Token]:
    names = EMBEDDING.findall(text)
    found: list[Token] = []
    last_word, embeddings = 0, -1
    ended = True
    for chunk in chunks:
        over = False
        for offset, (token, weight, word) in enumerate(chunk):
            column = start + len(found)
            if word == 0:
                number = token if isinstance(token, int) else -1
                if offset == 0 and number == tokenizer.start_token:
                    found.append(Token(column, "", number, "bos"))
                elif number == tokenizer.end_token and not over:
                    found.append(Token(column, "", number, "eos"))
                    over = True
                else:
                    found.append(Token(column, "", number, "padding"))
                continue
            opens = word != last_word
            last_word = word
            if not isinstance(token, int):
                embeddings += opens
                name = names[embeddings] if 0 <= embeddings < len(names) else "embedding"
                found.append(Token(column, name, name=name, opens=opens, emphasis=float(weight)))
                ended = True
                continue
            piece = tokenizer.inv_vocab.get(token, "")
            opens = opens or ended or piece.startswith("▁")
            found.append(Token(column, plain(tokenizer, token, piece), token, opens=opens, emphasis=float(weight)))
            ended = piece.endswith("</w>")
    return found


def plain(tokenizer: Any, token: int, piece: str) -> str:
    """Return a token as the text has it; byte-level pieces of CLIP need its own decoder."""
    decode = getattr(tokenizer.tokenizer, "decode", None)
    if decode is not None and "</w>" in piece:
        return str(decode([token])).strip()
    return piece.removesuffix("</w>").replace("▁", "").strip()
