"""A model that is a formula, so that what a mitigation does to it can be computed by hand."""

import pytest
import torch

from memguard.attributions.moment import Encoded
from memguard.mitigations.base import Start
from memguard.mitigations.edit import BOS, EOS, PADDING, WORD

TOKENS, WIDTH = 77, 6


def layout(words: int, rows: int = 1, chunks: int = 1) -> torch.Tensor:
    """BOS, words, EOS, padding; int8 [rows, 77 * chunks]."""
    chunk = torch.full((TOKENS,), PADDING, dtype=torch.int8)
    chunk[0], chunk[1 : 1 + words], chunk[1 + words] = BOS, WORD, EOS
    return chunk.repeat(rows, chunks)


class Formula:
    """A network of two layers: noise, prompt -> prediction."""

    def __init__(self, size=(4, 6, 8)):
        generator = torch.Generator().manual_seed(0)
        self.size = size
        self.a = torch.randn((WIDTH, size[0]), generator=generator) / 10
        self.calls = 0

    def __call__(self, view, own):
        self.calls += 1
        x = own if view.noise is None else view.noise
        mean = torch.tanh(view.prompt.text).mean(1) @ self.a  # [B, C]
        return torch.tanh(x * (1 + mean[..., None, None])) + mean[..., None, None]


@pytest.fixture
def formula():
    return Formula()


@pytest.fixture
def start(formula):
    def build(rows=1, words=3, **known):
        generator = torch.Generator().manual_seed(1)
        text = torch.randn((1, TOKENS, WIDTH), generator=generator)
        noise = torch.randn((rows, *formula.size), generator=generator)
        given = {
            "prompt": Encoded(text.repeat(rows, 1, 1)),
            "reference": Encoded(torch.zeros(rows, TOKENS, WIDTH)),
            "negative": Encoded(torch.zeros(rows, TOKENS, WIDTH)),
            "noise": noise,
            "size": formula.size,
            "predict": lambda view: formula(view, noise),
            "groups": layout(words, rows),
            "texts": ("a red fox",),
            "widths": {"down_blocks.0.attentions.0.transformer_blocks.0.attn2": 8},
            "eos_padded": WIDTH,
        }
        return Start(**given | known)

    return build
