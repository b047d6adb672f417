"""The autoencoder in TAESD's shape: an encoder that is exactly the PCA the UNet was trained on, a trained decoder.

The encoder carries positive and negative parts of each latent on channels of their own, because every block of TAESD
ends in a ReLU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LATENT_SCALE = 0.25  # the decoder squashes its input at 3, so latents travel at a quarter of their unit variance
SD_SCALE = 0.18215  # SD1's own factor between autoencoder and UNet
ONE = 63  # the channel that carries the constant 1


def build() -> Any:
    """Return diffusers' AutoencoderTiny with the scaling that the test bed's pipeline uses."""
    from diffusers import AutoencoderTiny

    return AutoencoderTiny(scaling_factor=1 / LATENT_SCALE).eval()


@torch.no_grad()
def set_encoder(model: Any, basis: Tensor, mean: Tensor, scale: Tensor) -> None:
    """Write the PCA into the encoder.

    Args:
        model: AutoencoderTiny.
        basis: orthonormal directions of 8x8x3 patches in -1..1, [192, 4].
        mean: [192].
        scale: standard deviation of each latent, [4].

    """
    layers = model.encoder.layers
    for parameter in model.encoder.parameters():
        parameter.zero_()
    first = layers[0]
    for channel in range(3):
        first.weight[channel, channel, 1, 1] = 1
    first.bias[ONE] = 1
    _space_to_depth(layers[2], 3)  # 3 colours -> 12 channels of a 2x2 patch
    _space_to_depth(layers[6], 12)  # -> 48 channels of a 4x4 patch
    # pixels arrive in 0..1: z = ((2 p - 1) - mean) basis / scale
    weight = (basis / scale).T * 2
    offset = -((1 + mean) @ (basis / scale))
    table = weight.view(4, 8, 8, 3)
    last = layers[10].weight
    for y in range(8):
        for x in range(8):
            (dy2, y1), (dx2, x1) = divmod(y, 4), divmod(x, 4)
            (dy1, dy0), (dx1, dx0) = divmod(y1, 2), divmod(x1, 2)
            for colour in range(3):
                channel = (dy1 * 2 + dx1) * 12 + (dy0 * 2 + dx0) * 3 + colour
                last[:4, channel, 1 + dy2, 1 + dx2] = table[:, y, x, colour]
                last[4:8, channel, 1 + dy2, 1 + dx2] = -table[:, y, x, colour]
    last[:4, ONE, 1, 1], last[4:8, ONE, 1, 1] = offset, -offset
    for latent in range(4):
        layers[14].weight[latent, latent, 1, 1] = LATENT_SCALE
        layers[14].weight[latent, latent + 4, 1, 1] = -LATENT_SCALE


def _space_to_depth(conv: Any, count: int) -> None:
    """Make a stride-2 convolution that moves 2x2 pixels into channels ordered (dy, dx, channel)."""
    for dy in range(2):
        for dx in range(2):
            for channel in range(count):
                conv.weight[(dy * 2 + dx) * count + channel, channel, 1 + dy, 1 + dx] = 1
    conv.weight[ONE, ONE, 1, 1] = 1


@torch.no_grad()
def start_decoder(model: Any, basis: Tensor, mean: Tensor, scale: Tensor, seed: int = 0) -> None:
    """Write a decoder that paints each patch in its mean colour: where training starts."""
    generator = torch.Generator().manual_seed(seed)
    layers = model.decoder.layers
    convolutions = [m for m in model.decoder.modules() if isinstance(m, torch.nn.Conv2d)]
    for conv in convolutions:
        std = (2 / (conv.in_channels * 9)) ** 0.5
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * std)
        conv.weight[:3] = 0
        if conv.bias is not None:
            conv.bias.zero_()
    for block in model.decoder.modules():
        if type(block).__name__ == "AutoencoderTinyBlock":
            block.conv[4].weight.zero_()  # a residual branch that starts silent
    for conv in [layers[i] for i in (6, 11, 16)]:
        for colour in range(3):
            conv.weight[colour, colour, 1, 1] = 1
    colours = ((basis * scale).view(64, 3, 4).mean(0)) / 2
    layers[0].weight[:3] = 0
    layers[0].weight[:3, :, 1, 1] = colours / LATENT_SCALE
    layers[0].bias[:3] = (mean.view(64, 3).mean(0) + 1) / 2
    layers[-1].weight.zero_()
    layers[-1].bias.zero_()
    for colour in range(3):
        layers[-1].weight[colour, colour, 1, 1] = 1


def to_taesd(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ComfyUI's names below ``first_stage_model.``; its decoder counts the input clamp as layer 0."""
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        side, _, rest = name.partition(".layers.")
        index, _, tail = rest.partition(".")
        shift = 1 if side == "decoder" else 0
        named[f"taesd_{side}.{int(index) + shift}.{tail}"] = value
    return named | {"vae_scale": torch.tensor(SD_SCALE * LATENT_SCALE), "vae_shift": torch.tensor(0.0)}
