"""Captions that vary from step to step: the baselines of Somepalli et al. (NeurIPS 2023).

A caption that is the same at every step is a key to its picture. None of this needs the network, and each costs some of
what the captions teach.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from ..troubles import Refused

KINDS = ("multiple_captions", "random_caption", "random_tokens", "word_repetition")
LARGEST = 10**6  # random number


class Captions:
    """Gives a caption anew at each step.

    Args:
        kind: "multiple_captions" draws one of several; "random_caption" takes random words in its place;
            "random_tokens" replaces a word by a random word or number, or adds one; "word_repetition" puts a word of
            the caption into it once more.
        share: of the steps at which a caption is changed, 0..1; the paper's is 0.4. No matter for multiple_captions.
        times: words that are changed, 0 or more.
        words: to draw from; () draws numbers. "random_caption" needs some.
        seed: of the draws; the global generators are left alone. In the workers of a DataLoader torch's seed of the
            worker is added, so that no two workers and no two epochs draw the same.

    Raises:
        Refused: for another kind, a share outside 0..1, times that are no count, or words that are missing or no list.

    """

    def __init__(self, kind: str, share: float = 0.4, times: int = 2, words: Sequence[str] = (), seed: int = 0) -> None:
        if kind not in KINDS:
            raise Refused(f"kind is {kind!r}; use one of {', '.join(KINDS)}")
        if not 0 <= share <= 1:
            raise Refused(f"share is {share}; give a number from 0 to 1")
        if not isinstance(times, int) or times < 0:
            raise Refused(f"times is {times}; give a whole number from 0 on")
        if isinstance(words, str):
            raise Refused(f"words is {words!r}; give a list of words")
        if kind == "random_caption" and not words:
            raise Refused("random_caption needs words to draw from")
        self.kind, self.share, self.times, self.words = kind, share, times, tuple(words)
        self.seed, self._random = seed, random.Random(seed)
        self._worker: int | None = None  # torch's seed of the worker that this copy draws in

    def __call__(self, caption: str | Sequence[str]) -> str:
        """Return the caption of this step, of one or, for multiple_captions, of several."""
        self._apart()
        if self.kind == "multiple_captions":
            if isinstance(caption, str):
                return caption
            if not len(caption):
                raise Refused("there is no caption to draw from; give at least one")
            return self._random.choice(caption)
        if not isinstance(caption, str):
            raise Refused(f"{self.kind} changes one caption, and several were given")
        if self._random.random() >= self.share:
            return caption
        words = caption.split()
        if self.kind == "random_caption":
            return " ".join(self._random.choices(self.words, k=max(1, len(words))))
        for _ in range(self.times):
            place = self._random.randint(0, len(words))
            if self.kind == "word_repetition":
                if words:
                    words.insert(place, self._random.choice(words))
            elif place < len(words) and self._random.random() < 0.5:
                words[place] = self._word()
            else:
                words.insert(place, self._word())
        return " ".join(words)

    def _apart(self) -> None:
        """Draw otherwise in each worker: it has a copy, made anew for each epoch of one that never draws."""
        info = get_worker_info()
        if info is not None and info.seed != self._worker:
            self._worker = info.seed
            self._random = random.Random(f"{self.seed} {info.seed}")

    def _word(self) -> str:
        return self._random.choice(self.words) if self.words else str(self._random.randrange(LARGEST))


def text_noise(encoded: Tensor, scale: float = 0.1, generator: torch.Generator | None = None) -> Tensor:
    """Return encoded captions with Gaussian noise added.

    Args:
        encoded: [B, tokens, d].
        scale: standard deviation; the paper's is 0.1.
        generator: of the noise, on its own device; None draws from torch's.

    """
    device = encoded.device if generator is None else generator.device
    noise = torch.randn(encoded.shape, generator=generator, device=device, dtype=torch.float32)
    return encoded + scale * noise.to(encoded)
