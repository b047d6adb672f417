"""diffusers' names of a UNet's tensors -> the names in an SD1.5 checkpoint."""

from __future__ import annotations

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_name(name: str, layers: int = 1) -> str:
    """Return the checkpoint's name of one tensor, without ``model.diffusion_model.``.

    Args:
        name: in diffusers, for instance ``down_blocks.0.resnets.0.conv1.weight``.
        layers: layers per block of the UNet.

    Raises:
        KeyError: for a tensor that SD1.5's layout does not have.

    """
    for ours, theirs in OUTSIDE.items():
        if name.startswith(ours + "."):
            return theirs + name.removeprefix(ours)
    parts = name.split(".")
    if parts[0] == "mid_block":
        slot = {"resnets": {"0": "0", "1": "2"}, "attentions": {"0": "1"}}[parts[1]][parts[2]]
        return f"middle_block.{slot}.{_inner(parts[1], parts[3:])}"
    side = parts[0]
    if side not in ("down_blocks", "up_blocks"):
        raise KeyError(name)
    block, kind, index = int(parts[1]), parts[2], int(parts[3])
    if side == "down_blocks":
        first = 1 + block * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{parts[-1]}"
        return f"input_blocks.{first + index}.{0 if kind == 'resnets' else 1}.{_inner(kind, parts[4:])}"
    first = block * (layers + 1)
    if kind == "upsamplers":
        return f"output_blocks.{first + layers}.2.conv.{parts[-1]}"
    return f"output_blocks.{first + index}.{0 if kind == 'resnets' else 1}.{_inner(kind, parts[4:])}"


def _inner(kind: str, parts: list[str]) -> str:
    return ".".join([RESNET[parts[0]], *parts[1:]] if kind == "resnets" else parts)
