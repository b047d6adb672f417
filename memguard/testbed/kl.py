"""The autoencoder in the shape of SD1.5's own (AutoencoderKL), for hosts that accept no other.

Analytic weights under ldm's names: the encoder is the PCA that the UNet was trained on, the decoder paints patches in
their mean colour with bilinear borders, so pictures are blurred; the trained TAESD decoder shows more.

Linear maps pass the group norms because each group also holds a large constant K and its negative, which fix mean and
variance up to (x / K)^2; they pass SiLU because SiLU(x) - SiLU(-x) = x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .autoencoder import SD_SCALE

WIDTHS = (128, 256, 512, 512)
K = 1000.0
GROUPS = 32

State = dict[str, Tensor]


def build(basis: Tensor, mean: Tensor, scale: Tensor) -> State:
    """Return the tensors below ``first_stage_model.``.

    Args:
        basis: orthonormal directions of 8x8x3 patches in -1..1, [192, 4].
        mean: [192].
        scale: standard deviation of each latent, [4].

    """
    state = _encoder(basis, mean, scale) | _decoder(basis, mean, scale)
    for name, channels in (("quant_conv", 8), ("post_quant_conv", 4)):
        state |= _conv(name, channels, channels, 1)
        state[f"{name}.weight"][:, :, 0, 0] = torch.eye(channels)
    return state


def _conv(name: str, inputs: int, outputs: int, size: int) -> State:
    return {f"{name}.weight": torch.zeros(outputs, inputs, size, size), f"{name}.bias": torch.zeros(outputs)}


def _norm(name: str, channels: int) -> State:
    return {f"{name}.weight": torch.ones(channels), f"{name}.bias": torch.zeros(channels)}


def _resnet(name: str, inputs: int, outputs: int) -> State:
    """Return a block whose residual branch is silent: it hands its first channels on."""
    state = _norm(f"{name}.norm1", inputs) | _conv(f"{name}.conv1", inputs, outputs, 3)
    state |= _norm(f"{name}.norm2", outputs) | _conv(f"{name}.conv2", outputs, outputs, 3)
    if inputs != outputs:
        state |= _conv(f"{name}.nin_shortcut", inputs, outputs, 1)
        kept = min(inputs, outputs)
        state[f"{name}.nin_shortcut.weight"][:kept, :kept, 0, 0] = torch.eye(kept)
    return state


def _middle(side: str) -> State:
    state = _resnet(f"{side}.mid.block_1", 512, 512) | _resnet(f"{side}.mid.block_2", 512, 512)
    state |= _norm(f"{side}.mid.attn_1.norm", 512)
    for part in ("q", "k", "v", "proj_out"):
        state |= _conv(f"{side}.mid.attn_1.{part}", 512, 512, 1)
    return state


def _linear_out(state: State, side: str, channels: int, values: int) -> None:
    """Let the first two channels of each of ``values`` groups, x and -x, pass norm_out and SiLU."""
    size = channels // GROUPS
    # mean 0 and variance 2 K^2 / size (two of ``size`` channels are K and -K)
    state[f"{side}.norm_out.weight"].fill_(K * (2 / size) ** 0.5)
    for value in range(values):
        state[f"{side}.conv_out.weight"][value, value * size, 1, 1] = 1
        state[f"{side}.conv_out.weight"][value, value * size + 1, 1, 1] = -1


def _encoder(basis: Tensor, mean: Tensor, scale: Tensor) -> State:
    state = _conv("encoder.conv_in", 3, 128, 3) | _middle("encoder")
    state |= _norm("encoder.norm_out", 512) | _conv("encoder.conv_out", 512, 8, 3)
    before = 128
    for level, width in enumerate(WIDTHS):
        for block in range(2):
            state |= _resnet(f"encoder.down.{level}.block.{block}", width if block else before, width)
        before = width
        if level < 3:
            state |= _conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    for colour in range(3):
        state["encoder.conv_in.weight"][colour, colour, 1, 1] = 1
    for level, count in ((0, 3), (1, 12)):
        weight = state[f"encoder.down.{level}.downsample.conv.weight"]
        for dy in range(2):
            for dx in range(2):
                for channel in range(count):
                    weight[(dy * 2 + dx) * count + channel, channel, dy, dx] = 1
    weight, bias = (state[f"encoder.down.2.downsample.conv.{part}"] for part in ("weight", "bias"))
    directions, size = (basis / scale).T.reshape(4, 8, 8, 3), 512 // GROUPS
    offset = -(mean @ (basis / scale))
    for y in range(8):
        for x in range(8):
            channel = ((y % 4 // 2) * 2 + x % 4 // 2) * 12 + ((y % 2) * 2 + x % 2) * 3
            for latent in range(4):
                row = directions[latent, y, x]
                weight[latent * size, channel : channel + 3, y // 4, x // 4] = row
                weight[latent * size + 1, channel : channel + 3, y // 4, x // 4] = -row
    for group in range(GROUPS):
        bias[group * size + 2], bias[group * size + 3] = K, -K
    for latent in range(4):
        bias[latent * size], bias[latent * size + 1] = offset[latent], -offset[latent]
    _linear_out(state, "encoder", 512, 4)
    state["encoder.conv_out.weight"] /= SD_SCALE
    state["encoder.conv_out.bias"][4:] = -30  # log variance: the posterior is a point
    return state


def _decoder(basis: Tensor, mean: Tensor, scale: Tensor) -> State:
    state = _conv("decoder.conv_in", 4, 512, 3) | _middle("decoder")
    state |= _norm("decoder.norm_out", 128) | _conv("decoder.conv_out", 128, 3, 3)
    before = 512
    smooth = torch.outer(*[torch.tensor([1.0, 2.0, 1.0]) / 4] * 2)
    for level in (3, 2, 1, 0):
        width = WIDTHS[level]
        for block in range(3):
            state |= _resnet(f"decoder.up.{level}.block.{block}", width if block else before, width)
        before = width
        if level:
            state |= _conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
            for channel in range(6):
                state[f"decoder.up.{level}.upsample.conv.weight"][channel, channel] = smooth
    colours = (basis * scale).reshape(64, 3, 4).mean(0) * SD_SCALE
    offset = mean.reshape(64, 3).mean(0)
    for colour in range(3):
        for sign, channel in ((1, colour), (-1, colour + 3)):
            state["decoder.conv_in.weight"][channel, :, 1, 1] = sign * colours[colour]
            state["decoder.conv_in.bias"][channel] = sign * offset[colour]
    size = 128 // GROUPS
    shortcut, bias = (state[f"decoder.up.0.block.0.nin_shortcut.{part}"] for part in ("weight", "bias"))
    shortcut.zero_()
    for colour in range(3):
        shortcut[colour * size, colour, 0, 0] = 1
        shortcut[colour * size + 1, colour + 3, 0, 0] = 1
    for group in range(GROUPS):
        bias[group * size + 2], bias[group * size + 3] = K, -K
    _linear_out(state, "decoder", 128, 3)
    return state
