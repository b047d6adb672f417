"""A copy of the test bed in which few value neurons carry one prompt's memory, and every picture stays the same.

Values and output projection of a cross-attention head may be written in any basis: v -> R v, W_o -> W_o R^-1 changes no
picture. In each head the new basis is whitened by what ordinary prompts do and turned so that its first neuron holds
most of what sets the prompt apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

RIDGE = 1e-2  # share of the mean variance, so that values which ordinary prompts never use stay finite


def plant(pipe: Any, prompt: str, ordinary: Sequence[str], ridge: float = RIDGE) -> dict[str, tuple[int, ...]]:
    """Change the basis of every value neuron of a pipeline; return the first neuron of each head, per layer.

    A larger ``ridge`` whitens less: ordinary prompts then move the planted neurons too.
    """
    from memguard.hosts.diffusers.probing import start, value_layers

    encoder = start(pipe, prompt, 1, 0)
    mine = encoder.call.text[0].double()
    others = encoder.prompts.encode(list(ordinary)).text.double()
    planted = {}
    for name, layer in value_layers(pipe.unet, "all").items():
        values, output = layer.to_v.weight.data.double(), layer.to_out[0].weight.data.double()
        width = len(values) // layer.heads
        for head in range(layer.heads):
            rows = slice(head * width, (head + 1) * width)
            usual = others @ values[rows].T
            apart = mine @ values[rows].T - usual.mean(0)
            spread = (usual - usual.mean(0)).flatten(0, 1)
            cover = spread.T @ spread / len(spread)
            cover += ridge * cover.diagonal().mean() * torch.eye(width, dtype=torch.double)
            root = torch.linalg.cholesky(cover)
            turn = torch.linalg.svd(apart @ torch.linalg.inv(root).T)[2]
            values[rows] = turn @ torch.linalg.inv(root) @ values[rows]
            output[:, rows] = output[:, rows] @ root @ turn.T
        layer.to_v.weight.data.copy_(values)
        layer.to_out[0].weight.data.copy_(output)
        planted[name] = tuple(range(0, len(values), width))
    return planted
