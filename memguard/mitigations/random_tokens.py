"""Words put into the prompt at random (Somepalli et al., NeurIPS 2023): a baseline, weak on verbatim copies.

"token": random tokens of CLIP's vocabulary below 49400 (RTA). "number": random numbers below 100000 (RNA). "word":
words of the prompt again (CWR). At a strength s the share s of them, rounded up.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from typing import Literal

from ..setting import setting
from .base import Mitigation, Start, Treatment, Unsuitable

TOKENS, NUMBERS = 49400, 100_000


@dataclass(frozen=True)
class RandomTokens(Mitigation):
    """Insert words at random places."""

    NAME = "random_tokens"
    TITLE = "Random tokens"
    SOURCE = "Somepalli et al., NeurIPS 2023"

    kind: Literal["token", "number", "word"] = setting(
        "token",
        "What is inserted.",
        choices={"token": "tokens of CLIP", "number": "numbers", "word": "words of the prompt again"},
    )
    count: int = setting(4, "How many.", least=0, neutral=0)
    seed: int = setting(0, "Of the words and places.")

    def _treat(self, start: Start, before: Treatment) -> Treatment:
        count = math.ceil(self.count * self.strength)
        if count == 0:
            return before
        if start.encode is None or not start.texts or (self.kind == "token" and start.word is None):
            raise Unsuitable("the prompt's text is not known, so no words can be put into it")
        texts = [self._insert(text, count, start) for text in start.texts]
        rows = len(start.prompt.text)
        found = start.encode([text for text in texts for _ in range(rows // len(texts))])
        if found.text.shape[1:] != start.prompt.text.shape[1:]:
            raise Unsuitable("with more words the prompt takes more columns than the model call has")
        return replace(before, prompt=found).note(f"the prompt became {' | '.join(dict.fromkeys(texts))!r}")

    def _insert(self, text: str, count: int, start: Start) -> str:
        chance = random.Random(self.seed)
        words = text.split()
        for _ in range(count):
            words.insert(chance.randrange(len(words) + 1), self._word(chance, text.split(), start))
        return " ".join(words)

    def _word(self, chance: random.Random, words: list[str], start: Start) -> str:
        if self.kind == "number":
            return str(chance.randrange(NUMBERS))
        if self.kind == "word":
            return chance.choice(words) if words else ""
        assert start.word is not None
        return start.word(chance.randrange(TOKENS))
