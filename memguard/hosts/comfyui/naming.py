"""Which words stand behind a conditioning: texts are encoded again and compared with what the sampler got.

A sampler knows tensors only. A conditioning may hold several texts in a row (Conditioning Concat); a part that no known
text encodes to (Conditioning Average, another CLIP) keeps its columns, without words.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...attributions import words
from ...attributions.words import Token
from ...records import TokenSpan
from . import tokens
from .syntax import encoded_from
from .texts import BOTH

CLOSE = 1e-2  # relative: the sampler's copy may have been through another precision


@dataclass(frozen=True)
class Segment:
    """Columns of one conditioning that one text encodes to; ``text`` is None where it is not known."""

    text: str | None
    start: int
    count: int

    @property
    def columns(self) -> slice:
        """Where in the conditioning."""
        return slice(self.start, self.start + self.count)

    def spans(self, clip: Any) -> tuple[TokenSpan, ...]:
        """Return the words and groups of these columns; none where their text is not known."""
        if self.text is None:
            return ()
        found = words.merge([words.spans(each, self.text) for each in tokens.columns(clip, self.text)])
        return tuple(replace(span, columns=tuple(c + self.start for c in span.columns)) for span in found)

    def groups(self, clip: Any) -> dict[str, list[int]]:
        """Return the columns of each group ("word", "bos", "eos", "padding")."""
        found: dict[str, list[int]] = {}
        for token in _tokens(clip, self.text):
            found.setdefault(token.group, []).append(self.start + token.column)
        return found


class Namer:
    """Finds the texts behind conditionings; each text is encoded once.

    Args:
        clip: CLIP that the texts go through.
        texts: candidates, in the order of their use.

    """

    def __init__(self, clip: Any, texts: Sequence[str]) -> None:
        self.clip = clip
        self._texts = encoded_from(texts)
        self._encoded: dict[str, Tensor] = {}

    def segments(self, vectors: Tensor) -> tuple[Segment, ...]:
        """Return the texts of a conditioning, [1, tokens, d], in the order of its columns."""
        found, start = [], 0
        while start < vectors.shape[1]:
            text = next((text for text in self._texts if self._fits(text, vectors, start)), None)
            if text is None:
                return (Segment(None, 0, vectors.shape[1]),)
            found.append(Segment(text, start, self._vectors(text).shape[1]))
            start += found[-1].count
        return tuple(found)

    def _fits(self, text: str, vectors: Tensor, start: int) -> bool:
        own = self._vectors(text)
        part = vectors[:1, start : start + own.shape[1]].to(own)
        return part.shape == own.shape and bool((part - own).norm() <= CLOSE * own.norm())

    def _vectors(self, text: str) -> Tensor:
        if text not in self._encoded:
            self._encoded[text] = tokens.encode(self.clip, text)[0][0][:1].to("cpu", torch.float32)
        return self._encoded[text]


def confirmed(clip: Any, texts: Sequence[str], vectors: Sequence[Tensor]) -> str | None:
    """Return the texts that encode to a prompt, joined by " | "; None where a part of it is no text's.

    Args:
        clip: CLIP that the texts go through.
        texts: candidates.
        vectors: of each conditioning of the prompt, [B, tokens, d].

    """
    namer = Namer(clip, texts)
    found = [segment.text for each in vectors for segment in namer.segments(each[:1].to("cpu", torch.float32))]
    known = [text for text in found if text is not None]
    return BOTH.join(dict.fromkeys(known)) if known and len(known) == len(found) else None


def _tokens(clip: Any, text: str | None) -> list[Token]:
    return [] if text is None else [token for part in tokens.columns(clip, text) for token in part]
