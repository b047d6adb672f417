"""Widen the small networks to SD1.5's shapes without changing what they compute.

Every residual channel is copied r times and every weight that reads it is divided by r, so GroupNorm and LayerNorm see
the same statistics. Heads are padded with zeros up to SD1.5's width (queries scaled, because the head scale changes).
The UNet's four heads become eight by taking each one twice at half the output, so that statistics over heads keep
their meaning. The copies carry no new information: say nothing about neurons of the widened network that you did not
check on the small one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

State = dict[str, Tensor]


def outputs(weight: Tensor, copies: int) -> Tensor:
    """Copy the output channels (first axis)."""
    return weight.repeat_interleave(copies, 0)


def inputs(weight: Tensor, copies: int) -> Tensor:
    """Copy the input channels (second axis), each at 1/copies."""
    return weight.repeat_interleave(copies, 1) / copies


def head_rows(weight: Tensor, heads: int, wide_heads: int, wide_dim: int, repeat: int = 1) -> Tensor:
    """Place the rows of ``heads`` heads into ``wide_heads`` heads of ``wide_dim`` rows; what is left stays zero."""
    small = weight.reshape(heads, -1, *weight.shape[1:]).repeat_interleave(repeat, 0)
    wide = weight.new_zeros(wide_heads, wide_dim, *weight.shape[1:])
    wide[: len(small), : small.shape[1]] = small
    return wide.reshape(wide_heads * wide_dim, *weight.shape[1:])


def pad(weight: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """Pad with zeros to ``rows`` x ``columns``."""
    wide = weight.new_zeros(rows, *((columns or weight.shape[1],) if weight.ndim > 1 else ()))
    wide[tuple(slice(size) for size in weight.shape)] = weight
    return wide


def widen_unet(state: State, copies: int, heads: int, wide_heads: int, text_copies: int) -> State:
    """Return the state of a UNet with ``copies`` times the channels (diffusers names).

    Args:
        state: of the small UNet.
        copies: factor of the channels, 5 from 64 to 320.
        heads: of the small UNet.
        wide_heads: of the wide one, a multiple of ``heads``.
        text_copies: factor of the text encoder's width, 6 from 128 to 768.

    """
    repeat = wide_heads // heads
    wide: State = {}
    for name, value in state.items():
        w = value.float()
        if name == "time_embedding.linear_1.weight":
            wide[name] = outputs(_sinusoid_columns(w, copies), copies)
        elif name == "conv_in.weight":
            wide[name] = outputs(w, copies)
        elif name == "conv_out.weight":
            wide[name] = inputs(w, copies)
        elif name == "conv_out.bias":
            wide[name] = w
        elif name.endswith(("to_q.weight", "to_k.weight", "to_v.weight")):
            from_text = "attn2" in name and "to_q" not in name
            w = inputs(w, text_copies if from_text else copies)
            dim = len(w) * copies // wide_heads
            scale = math.sqrt(dim * heads / len(w)) if "to_q" in name else 1.0
            wide[name] = head_rows(w * scale, heads, wide_heads, dim, repeat)
        elif name.endswith("to_out.0.weight"):
            dim = w.shape[1] * copies // wide_heads
            columns = head_rows(w.T.contiguous() / repeat, heads, wide_heads, dim, repeat)
            wide[name] = outputs(columns.T.contiguous(), copies)
        elif ".ff.net.0.proj." in name:
            halves = [inputs(h, copies) if h.ndim > 1 else h for h in w.chunk(2)]
            wide[name] = torch.cat([pad(h, len(h) * copies) for h in halves])
        elif name.endswith(".ff.net.2.weight"):
            wide[name] = pad(outputs(w, copies), len(w) * copies, w.shape[1] * copies)
        elif w.ndim >= 2:
            wide[name] = outputs(inputs(w, copies), copies)
        else:
            wide[name] = outputs(w, copies)
    return wide


def _sinusoid_columns(weight: Tensor, copies: int) -> Tensor:
    """Spread the columns that read the time sinusoid: frequency i of n is frequency i * copies of n * copies."""
    half = weight.shape[1] // 2
    wide = weight.new_zeros(len(weight), weight.shape[1] * copies)
    wide[:, : half * copies : copies] = weight[:, :half]
    wide[:, half * copies :: copies] = weight[:, half:]
    return wide


def widen_text(state: State, width: int, heads: int, wide_heads: int, layers: int, wide_layers: int) -> State:
    """Return the state of a CLIP text encoder of ``width`` channels; extra layers pass their input on.

    Names are those of CLIPTextModel below ``text_model.`` (the prefix itself is dropped).
    """
    state = {name.removeprefix("text_model."): value.float() for name, value in state.items()}
    small = state["final_layer_norm.weight"].shape[0]
    copies, dim = width // small, width // wide_heads
    hidden, small_dim = 4 * width, small // heads
    wide: State = {}
    for name in ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight"):
        wide[name] = state[name].repeat_interleave(copies, 1)
    for name in ("final_layer_norm.weight", "final_layer_norm.bias"):
        wide[name] = outputs(state[name], copies)
    for index in range(wide_layers):
        prefix = f"encoder.layers.{index}."
        if index >= layers:
            wide |= _passing_layer(prefix, width, hidden)
            continue
        for norm in ("layer_norm1", "layer_norm2"):
            for part in ("weight", "bias"):
                wide[f"{prefix}{norm}.{part}"] = outputs(state[f"{prefix}{norm}.{part}"], copies)
        for key in ("q_proj", "k_proj", "v_proj"):
            scale = math.sqrt(dim / small_dim) if key == "q_proj" else 1.0
            name = f"{prefix}self_attn.{key}."
            weight, bias = inputs(state[name + "weight"], copies) * scale, state[name + "bias"] * scale
            wide[name + "weight"] = head_rows(weight, heads, wide_heads, dim)
            wide[name + "bias"] = head_rows(bias, heads, wide_heads, dim)
        name = f"{prefix}self_attn.out_proj."
        columns = head_rows(state[name + "weight"].T.contiguous(), heads, wide_heads, dim)
        wide[name + "weight"] = outputs(columns.T.contiguous(), copies)
        wide[name + "bias"] = outputs(state[name + "bias"], copies)
        wide[f"{prefix}mlp.fc1.weight"] = pad(inputs(state[f"{prefix}mlp.fc1.weight"], copies), hidden)
        wide[f"{prefix}mlp.fc1.bias"] = pad(state[f"{prefix}mlp.fc1.bias"], hidden)
        wide[f"{prefix}mlp.fc2.weight"] = pad(outputs(state[f"{prefix}mlp.fc2.weight"], copies), width, hidden)
        wide[f"{prefix}mlp.fc2.bias"] = outputs(state[f"{prefix}mlp.fc2.bias"], copies)
    return wide


def _passing_layer(prefix: str, width: int, hidden: int) -> State:
    """Return a layer whose two branches add zero."""
    layer: State = {}
    for key in ("q_proj", "k_proj", "v_proj", "out_proj"):
        layer[f"{prefix}self_attn.{key}.weight"] = torch.zeros(width, width)
        layer[f"{prefix}self_attn.{key}.bias"] = torch.zeros(width)
    layer[f"{prefix}mlp.fc1.weight"], layer[f"{prefix}mlp.fc1.bias"] = torch.zeros(hidden, width), torch.zeros(hidden)
    layer[f"{prefix}mlp.fc2.weight"], layer[f"{prefix}mlp.fc2.bias"] = torch.zeros(width, hidden), torch.zeros(width)
    for norm in ("layer_norm1", "layer_norm2"):
        layer[f"{prefix}{norm}.weight"], layer[f"{prefix}{norm}.bias"] = torch.ones(width), torch.zeros(width)
    return layer
