"""The way back through a CLIP of ComfyUI: from the encoded prompt to the words' own embeddings.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ..inference import differentiable
from . import tokens

Pullback = Callable[[Tensor, Tensor | None], Tensor]


def is_open(clip: Any, text: str) -> bool:
    """Whether every word has an embedding of a token; a textual inversion has none."""
    return all(token.name is None for part in tokens.columns(clip, text) for token in part)


@contextmanager
def input_gradients(clip: Any, text: str) -> Iterator[Pullback]:
    """Encode a prompt with its graph and yield the pullback for ``gradient.significance``."""
    found = tokens.encoders(clip, text)
    clip.load_model()
    leaves: dict[str, list[Tensor]] = {name: [] for name, _, _ in found}
    with differentiable(clip.cond_stage_model):
        with ExitStack() as hooks:
            for name, _, _ in found:
                layer = getattr(clip.cond_stage_model, name).transformer.get_input_embeddings()

                def hook(_module: Any, _inputs: Any, output: Tensor, name: str = name) -> Tensor:
                    leaf = output.detach().float().requires_grad_(True)
                    leaves[name].append(leaf)
                    return leaf.to(output.dtype)

                hooks.callback(layer.register_forward_hook(hook).remove)
            encoded = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True, return_dict=True)
        yield _pullback(encoded, found, leaves)


def _pullback(encoded: dict[str, Any], found: list[tuple[str, int, int]], leaves: dict[str, list[Tensor]]) -> Pullback:
    inputs = [leaf for chunks in leaves.values() for leaf in chunks]

    def pullback(gradient: Tensor, pooled: Tensor | None) -> Tensor:
        squares = gradient.new_zeros(gradient.shape[:2])
        for image in range(len(gradient)):
            outputs, seeds = [encoded["cond"]], [gradient[image : image + 1].to(encoded["cond"])]
            if pooled is not None:
                outputs, seeds = [*outputs, encoded["pooled_output"]], [*seeds, pooled[image : image + 1]]
            grads = iter(torch.autograd.grad(outputs, inputs, seeds, retain_graph=True, allow_unused=True))
            for name, start, count in found:
                column = start
                for _ in leaves[name]:
                    grad = next(grads)
                    if grad is None or column >= start + count:
                        continue  # the empty chunk that weights are measured against
                    part = grad[0].float().pow(2).sum(-1).to(squares)
                    squares[image, column : column + len(part)] += part
                    column += len(part)
        return squares

    return pullback
