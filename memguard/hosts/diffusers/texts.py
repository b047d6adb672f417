"""The prompts of a pipeline's run as mitigations see them (memguard.host.Texts)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...mitigations.edit import CODES, OTHER
from . import pipes
from .calls import Call
from .rows import Encoded, Prompts
from .tokens import columns, sure


class Texts:
    """The prompts of one run.

    Args:
        pipe: the pipeline.
        prompts: what it encodes.
        call: a model call, which may take more of a prompt than its text.
        rows: number of images.

    """

    def __init__(self, pipe: Any, prompts: Prompts, call: Call, rows: int) -> None:
        self.pipe, self.prompts, self.call, self.rows = pipe, prompts, call, rows
        self.known = prompts.of_rows(rows)
        self.tokenizer = getattr(pipe, "tokenizer", None)

    def eos_padded(self, width: int) -> int:
        """Return how many of a text's features come from an encoder that fills prompts up with EOS."""
        return pipes.eos_padded(self.pipe, width)

    def table(self, columns: int) -> Tensor | None:
        """Return what stands in each column of the prompts, int8 [B, columns]; None where that is not known."""
        return groups_of(self.pipe, self.prompts.texts, columns, self.rows, self.prompts.read)

    def encode(self, texts: Sequence[str], padding: int | None = None) -> Encoded:
        """Encode other texts, one row each.

        Raises:
            Unscored: if more than a text goes with a prompt.

        """
        self.call.takes_another_prompt()
        with _padded(self.tokenizer, padding), torch.no_grad():
            return self.prompts.encode(texts)

    def word(self, number: int) -> str | None:
        """Return the text of a token of the vocabulary; None without a tokenizer."""
        return None if self.tokenizer is None else str(self.tokenizer.decode([number]).strip())


def groups_of(
    pipe: Any, texts: Sequence[str], count: int, rows: int, read: Sequence[Sequence[int]] | None = None
) -> Tensor | None:
    """Return what stands in each column of the prompts' rows, int8 [rows, count]; None where that is not known.

    Args:
        pipe: the pipeline.
        texts: the prompts.
        count: number of columns.
        rows: number of rows.
        read: what the text encoders read, where that is to be compared, see ``tokens.sure``.

    """
    if not texts or rows % len(texts):
        return None
    table = torch.full((len(texts), count), OTHER, dtype=torch.int8)
    for row, text in enumerate(texts):
        parts = columns(pipe, text, count)[0]
        if read is not None and not sure(pipe, read, parts):
            return None
        for token in (token for part in parts for token in part):
            if token.column < count:
                table[row, token.column] = CODES[token.group]
    return table.repeat_interleave(rows // len(texts), 0)


@contextmanager
def _padded(tokenizer: Any, padding: int | None) -> Iterator[None]:
    """Let a tokenizer fill prompts up with another token for the time of the block."""
    if padding is None:
        yield
        return
    before = tokenizer.pad_token
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding)
    try:
        yield
    finally:
        tokenizer.pad_token = before
