"""The prompts of a pass as mitigations see them (memguard.host.Texts).

Part of the WebUI hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...attributions.moment import Encoded
from . import tokens

EOS_PADDED = {"sdxl": 768}  # features of CLIP-L; SD1's text is all of it


class Texts:
    """The prompts of one pass.

    Args:
        engine: the WebUI's text engine, of CLIP-L where there are several; None where it is not known.
        encode: encodes texts as the host encodes its own.
        texts: the prompt of each image.
        family: of the model.

    """

    def __init__(self, engine: Any, encode: Callable[[list[str]], Any], texts: Sequence[str], family: str) -> None:
        self.engine, self._encode, self.each, self.family = engine, encode, tuple(texts), family
        known = tuple(dict.fromkeys(texts))
        self.known = known if len(known) == 1 else self.each

    def eos_padded(self, width: int) -> int:
        """Return how many of a text's features come from an encoder that fills prompts up with EOS."""
        return width if self.family == "sd15" else EOS_PADDED.get(self.family, 0)

    def table(self, columns: int) -> Tensor | None:
        """Return what stands in each column of the prompts, int8 [B, columns]; None where that is not known."""
        return tokens.table(self.engine, self.each, columns)

    def encode(self, texts: Sequence[str], padding: int | None = None) -> Encoded:
        """Encode other texts, one row each."""
        with tokens.padded(self.engine, padding), torch.no_grad():
            return tokens.encoded(self._encode(list(texts)))

    def word(self, number: int) -> str | None:
        """Return the text of a token of CLIP's vocabulary; None where the tokenizer cannot tell."""
        tokenizer: Any = getattr(self.engine, "tokenizer", None)
        return str(tokenizer.decode([number])).strip() if hasattr(tokenizer, "decode") else None
