"""Checkpoints in one file: the architecture is read from the tensors' shapes, so that nothing is fetched for it.

diffusers' ``from_single_file`` looks for the architecture on the network; given a folder of configurations, it does
not. This writes that folder for checkpoints of Stable Diffusion 1, whatever their widths and depths.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...testbed.tokens import write_tokenizer
from ...troubles import Refused

UNET = "model.diffusion_model."
TEXT = "cond_stage_model.transformer.text_model."
VAE = "first_stage_model."
SCHEDULE = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
REMEDY = (
    "memguard reads single files of Stable Diffusion 1; convert others once, with diffusers' from_single_file(...)"
    ".save_pretrained(FOLDER), and give the folder"
)
Shapes = Mapping[str, tuple[int, ...]]


def load(path: Path, dtype: Any) -> Any:
    """Return the pipeline of a checkpoint; one without diffusers' usual autoencoder has none, and makes latents only.

    Args:
        path: a .safetensors file under ldm's names.
        dtype: torch's, of the weights.

    Raises:
        ValueError: in one line, for a file of something else.
        OSError: if it cannot be read.

    """
    from diffusers import StableDiffusionPipeline

    shapes = _shapes(path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = _write(folder, shapes, str(path))
        absent: dict[str, Any] = {} if known else {"vae": None}
        return StableDiffusionPipeline.from_single_file(
            str(path),
            config=name,
            local_files_only=True,
            torch_dtype=dtype,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **absent,
        )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    if path.suffix.lower() != ".safetensors":
        raise Refused(f"{path}: is a single file; memguard reads .safetensors, because pickles run code when loaded")
    try:
        with safe_open(str(path), "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict
    except SafetensorError:
        raise Refused(f"{path}: is no safetensors file, or a damaged one; copy it again") from None


def _write(folder: Path, shapes: Shapes, name: str) -> bool:
    """Write the configurations; return whether the autoencoder is one that diffusers reads."""
    try:
        unet, text = unet_config(shapes), text_config(shapes)
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        raise Refused(f"{name}: {REMEDY}") from None
    vae = f"{VAE}decoder.conv_in.weight" in shapes and f"{VAE}encoder.conv_in.weight" in shapes
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    configs = {
        "model_index": index,
        "unet/config": unet,
        "text_encoder/config": text,
        "scheduler/scheduler_config": SCHEDULE,
        "vae/config": vae_config(shapes) if vae else {},
    }
    for place, values in configs.items():
        file = folder / f"{place}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    write_tokenizer(folder / "tokenizer")
    return vae


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """Return the configuration of a UNet of Stable Diffusion 1 from its shapes under ldm's names.

    Raises:
        KeyError: if it is another architecture.
        ValueError: likewise.

    """
    first = shapes[f"{UNET}input_blocks.0.0.weight"]
    if first[1] != 4 or f"{UNET}label_emb.0.0.weight" in shapes:
        raise ValueError("inpainting models and Stable Diffusion XL")
    widths: list[int] = []
    depths: list[list[int]] = [[]]  # per level and layer: transformer blocks
    number = 1
    while f"{UNET}input_blocks.{number}.0.in_layers.0.weight" in shapes or _halves(shapes, number):
        if _halves(shapes, number):
            depths.append([])
        else:
            block = f"{UNET}input_blocks.{number}."
            widths[len(depths) - 1 :] = [shapes[f"{block}0.out_layers.3.weight"][0]]
            depths[-1].append(
                len({key.split(".")[6] for key in shapes if key.startswith(f"{block}1.transformer_blocks.")})
            )
        number += 1
    context = {shape[1] for key, shape in shapes.items() if key.startswith(UNET) and key.endswith("attn2.to_k.weight")}
    layers = {len(level) for level in depths}
    if context != {768} or len(layers) != 1 or any(set(level) - {0, 1} or len(set(level)) > 1 for level in depths):
        raise ValueError("another text encoder, or blocks that Stable Diffusion 1 does not have")
    cross = [bool(level[0]) for level in depths]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "layers_per_block": layers.pop(),
        "block_out_channels": widths,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "down_block_types": ["CrossAttnDownBlock2D" if each else "DownBlock2D" for each in cross],
        "up_block_types": ["CrossAttnUpBlock2D" if each else "UpBlock2D" for each in reversed(cross)],
    }


def _halves(shapes: Shapes, number: int) -> bool:
    return f"{UNET}input_blocks.{number}.0.op.weight" in shapes


def text_config(shapes: Shapes) -> dict[str, Any]:
    """Return the configuration of CLIP's text encoder.

    Raises:
        KeyError: if there is none.

    """
    words, width = shapes[f"{TEXT}embeddings.token_embedding.weight"]
    layers = {match[1] for key in shapes if (match := re.match(rf"{re.escape(TEXT)}encoder\.layers\.(\d+)\.", key))}
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": shapes[f"{TEXT}encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": len(layers),
        "num_attention_heads": width // 64,
        "max_position_embeddings": shapes[f"{TEXT}embeddings.position_embedding.weight"][0],
        "hidden_act": "quick_gelu",
        "projection_dim": width,
        "bos_token_id": words - 2,
        "eos_token_id": words - 1,
        "pad_token_id": words - 1,
    }


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Return the configuration of the autoencoder."""
    levels, number = [], 0
    while (key := f"{VAE}encoder.down.{number}.block.0.conv1.weight") in shapes:
        levels.append(shapes[key][0])
        number += 1
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": levels,
        "down_block_types": ["DownEncoderBlock2D"] * number,
        "up_block_types": ["UpDecoderBlock2D"] * number,
        "latent_channels": 4,
        "layers_per_block": 2,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    }
