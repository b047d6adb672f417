"""Which token stands in which column of a pipeline's encoded prompt."""

from __future__ import annotations

import logging
import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...attributions.words import Token
from ...texts import UNREAD
from .attention import cross_layers
from .ids import confirmed
from .pipes import denoiser
from .rows import Prompts

log = logging.getLogger("memguard")
COPY = re.compile(r"_\d+$")  # of a textual inversion of several vectors: <cat>, <cat>_1, <cat>_2


def columns(pipe: Any, text: str, count: int) -> tuple[list[list[Token]], str]:
    """Return the tokens of an encoded prompt, one list per text encoder, and the text as it was tokenized.

    Args:
        pipe: the pipeline.
        text: the prompt.
        count: number of columns of the encoded prompt.

    """
    convert = getattr(pipe, "maybe_convert_prompt", None)
    parts = []
    for tokenizer, start, length in _encoders(pipe, count):
        said = convert(text, tokenizer) if convert is not None else text
        ids = tokenizer(said, padding="max_length", max_length=length, truncation=True).input_ids
        parts.append(_tokens(tokenizer, [int(i) for i in ids], start))
    return parts, text


def unread(pipe: Any, text: str, count: int) -> str:
    """Return the note that the end of a prompt is beyond what the model's text encoders read; "" where it is not.

    Args:
        pipe: the pipeline.
        text: the prompt.
        count: number of columns of the encoded prompt.

    """
    try:
        notes = [_beyond(pipe, tokenizer, text, length) for tokenizer, _, length in _reading(pipe, count)]
    except Exception as error:  # tokenizers of other packages; a note is not worth a score
        log.debug("the length of the prompt is not known: %s", error)
        return ""
    return min(notes, default=(0, ""))[1]


def _reading(pipe: Any, count: int) -> list[tuple[Any, int, int]]:
    """Return the encoders that are there; SD3's T5 may be left out, and its columns are zeros then."""
    parts = [part for part in _encoders(pipe, count) if part[0] is not None]
    return parts[:1] if getattr(pipe, "text_encoder_3", parts) is None else parts


def _beyond(pipe: Any, tokenizer: Any, text: str, length: int) -> tuple[int, str]:
    """Return how many characters an encoder leaves out, and the note about it."""
    convert = getattr(pipe, "maybe_convert_prompt", None)

    def fits(part: str) -> bool:
        said = convert(part, tokenizer) if convert is not None else part
        return len(tokenizer(said, truncation=True, max_length=length + 1).input_ids) <= length

    if fits(text):
        return 0, ""
    words = text.split()
    read = bisect_left(range(1, len(words)), True, key=lambda k: not fits(" ".join(words[:k])))
    left, what = len(words) - read, "word"
    if read == 0:  # one long word, or a script without spaces
        read = bisect_left(range(1, len(text)), True, key=lambda k: not fits(text[:k]))
        left, what = len(text) - read, "character"
    room = length - tokenizer.num_special_tokens_to_add()
    end = f"last {what} was" if left == 1 else f"last {left} {what}s were"
    return left, f"the {end} {UNREAD} {room} tokens"


def summary(pipe: Any, prompts: Prompts, count: int, rows: int) -> Tensor | None:
    """Return which columns hold EOS and padding (Ren et al.: summary tokens), bool [rows, count].

    Args:
        pipe: the pipeline.
        prompts: of its call, each of which has the same number of rows.
        count: number of columns.
        rows: number of rows.

    Returns:
        None where the texts or their columns are not known.

    """
    texts = prompts.texts
    if not texts or rows % len(texts):
        return None
    table = torch.zeros((len(texts), count), dtype=torch.bool)
    for row, text in enumerate(texts):
        parts, _ = columns(pipe, text, count)
        if not sure(pipe, prompts.read, parts):
            return None
        last = [token.column for part in parts for token in part if token.group in ("eos", "padding")]
        table[row, last] = True
    return table.repeat_interleave(rows // len(texts), 0)


def sure(pipe: Any, read: Sequence[Sequence[int]], parts: Sequence[Sequence[Token]]) -> bool:
    """Whether the tokens of a prompt may be shown of its attention: beyond named UNets, if its encoders read them.

    Args:
        pipe: the pipeline.
        read: what its text encoders read, rows of ids.
        parts: from ``columns``.

    """
    module = denoiser(pipe)
    named = module is not None and bool(cross_layers(getattr(module, "_orig_mod", module)))
    return named or confirmed(read, parts)


def _encoders(pipe: Any, count: int) -> list[tuple[Any, int, int]]:
    """Return tokenizer, first column and number of columns of each text encoder whose tokens the model sees."""
    first: Any = getattr(pipe, "tokenizer", None)
    second: Any = getattr(pipe, "tokenizer_2", None)
    third: Any = getattr(pipe, "tokenizer_3", None)
    if hasattr(pipe, "text_encoder_3"):  # SD3: CLIP's columns, then T5's
        length = first.model_max_length
        parts = [(first, 0, length)]
        return parts if third is None else [*parts, (third, length, count - length)]
    if second is not None and _t5(second):
        return [(second, 0, count)]  # Flux: CLIP gives the pooled vector only
    return [(second if first is None else first, 0, count)]  # SDXL: both encoders share the columns


def _t5(tokenizer: Any) -> bool:
    return getattr(tokenizer, "bos_token", None) is None


def _tokens(tokenizer: Any, ids: list[int], start: int) -> list[Token]:
    """Return one token per column; the first EOS after the words is EOS, what follows is padding.

    Without an EOS (Gemma's tokenizer writes none) the fillers at the end are padding.
    """
    pieces = tokenizer.convert_ids_to_tokens(ids)
    added = {v: k for k, v in tokenizer.get_added_vocab().items()}
    special = set(tokenizer.all_special_ids)
    found: list[Token] = []
    over = False
    words = len(ids)
    if tokenizer.eos_token_id not in ids:
        while words and ids[words - 1] == tokenizer.pad_token_id:
            words -= 1
    ended = True  # whether the last piece closed its word
    for offset, (number, piece) in enumerate(zip(ids, pieces, strict=True)):
        column = start + offset
        if over or offset >= words:
            found.append(Token(column, "", number, "padding"))
        elif number == tokenizer.eos_token_id:
            found.append(Token(column, "", number, "eos"))
            over = True
        elif offset == 0 and number == getattr(tokenizer, "bos_token_id", None):
            found.append(Token(column, "", number, "bos"))
        elif number in added and number not in special:
            name = COPY.sub("", added[number])
            found.append(Token(column, name, number, name=name, opens=name == added[number]))
            ended = True
        else:
            text = tokenizer.decode([number]).strip()
            found.append(Token(column, text, number, opens=ended or piece.startswith("▁")))
            ended = piece.endswith("</w>")
    return found
