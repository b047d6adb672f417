"""The way back through a WebUI's text engine: from the encoded prompt to the words' own embeddings.

Part of the WebUI hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...attributions.gradient import Pullback
from ...troubles import Told

EMBEDDING = "token_embedding"


class Closed(Told):
    """A text engine that cannot be followed to its input."""


@contextmanager
def input_gradients(engine: Any, text: str, width: int) -> Iterator[Pullback]:
    """Encode a prompt with its graph and yield the pullback for ``gradient.significance``.

    The leaves are what the embedding gives out, textual inversions included.

    Args:
        engine: of one text encoder; autograd must be let through it.
        text: the prompt.
        width: features of the encoded prompt that the network gets; those of several encoders side by side are closed.

    Raises:
        Closed: where there is no way back.

    """
    layer = _embedding(engine)
    if layer is None:
        raise Closed
    leaves: list[Tensor] = []

    def hook(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        leaf = output.detach().float().requires_grad_(True)
        leaves.append(leaf)
        return leaf.to(output.dtype)

    handle = layer.register_forward_hook(hook)
    try:
        made = engine([text])
    finally:
        handle.remove()
    encoded = made[0] if isinstance(made, tuple) else made
    if not leaves or not isinstance(encoded, Tensor) or encoded.grad_fn is None or encoded.shape[-1] != width:
        raise Closed

    def pullback(gradient: Tensor, pooled: Tensor | None) -> Tensor:
        squares = gradient.new_zeros(gradient.shape[:2])
        count = min(gradient.shape[1], encoded.shape[1])  # the prompts of a batch have a common length
        for image, row in enumerate(gradient[:, :count]):
            seed = torch.zeros_like(encoded)
            seed[0, :count] = row
            found = torch.autograd.grad(encoded, leaves, seed, retain_graph=True, allow_unused=True)
            parts = [
                (torch.zeros_like(leaf) if grad is None else grad)[0].float().pow(2).sum(-1)
                for leaf, grad in zip(leaves, found, strict=True)
            ]
            squares[image, :count] = torch.cat(parts)[:count].to(squares)
        return squares

    yield pullback


def _embedding(engine: Any) -> nn.Module | None:
    """Return the layer that gives tokens their embeddings, and textual inversions in their place."""
    root = engine if isinstance(engine, nn.Module) else getattr(engine, "text_encoder", None)
    if not isinstance(root, nn.Module):
        return None
    # the outermost: it is a wrapper, and inside of it is what has no textual inversions
    return next((module for name, module in root.named_modules() if name.split(".")[-1] == EMBEDDING), None)
