"""Whether the tokens that a prompt is said to have are those that the pipeline's text encoders have read.

A pipeline may put a template around a prompt, or leave columns out again. Where words are shown of layers that nobody
has named, what its encoders read is compared with what is said of its columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from ...attributions.words import Token

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
UNKNOWN_COLUMNS = "the words cannot be told by their columns: the text encoder reads more than the prompt"

READ: ContextVar[list[list[int]] | None] = ContextVar("memguard_read", default=None)


@contextmanager
def noting(pipe: Any) -> Iterator[None]:
    """Note in READ what a pipeline's text encoders read within the block."""
    kept: list[list[int]] = []

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point():
            kept.extend(ids.tolist())

    token = READ.set(kept)
    try:
        with ExitStack() as stack:
            for name in ENCODERS:
                encoder = getattr(pipe, name, None)
                if isinstance(encoder, nn.Module):
                    stack.callback(encoder.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield
    finally:
        READ.reset(token)


def confirmed(read: Sequence[Sequence[int]], parts: Sequence[Sequence[Token]]) -> bool:
    """Whether each part of a prompt's tokens begins a row that an encoder has read; later columns were left out then.

    Args:
        read: rows of ids.
        parts: the tokens of each text encoder.

    """
    rows = [list(row) for row in read]
    return all(any(row[: len(part)] == [token.id for token in part] for row in rows) for part in parts)
