"""Blocks that are computed again in the backward pass."""

import torch
from torch import nn

from memguard.attributions.lean import lean


class DrawingTransformerBlock(nn.Module):
    """Draws in every call, as token merging does."""

    def forward(self, x):
        return x * torch.rand(x.shape) + torch.randn(())


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(DrawingTransformerBlock() for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def gradient(network, x, seed=3):
    torch.manual_seed(seed)
    x = x.clone().requires_grad_(True)
    out = network(x)
    return out.detach(), *torch.autograd.grad(out.pow(2).sum(), x)


def test_a_block_that_draws_draws_the_same_when_it_is_computed_again():
    network, x = Network(), torch.randn(2, 5, generator=torch.manual_seed(1))
    plain = gradient(network, x)
    with lean(network) as blocks:
        again = gradient(network, x)
        after = torch.rand(())
    assert blocks == 3
    torch.testing.assert_close(again, plain)
    gradient(network, x)
    assert torch.equal(after, torch.rand(())), "the backward pass moves no generator"
