"""Load the shipped weights as a diffusers pipeline."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..troubles import Refused
from . import autoencoder, widen
from . import model as nets
from .tokens import write_tokenizer

STAGES = ("early", "middle", "final")
SOURCE = "early stages come with the source tree alone (testbed/stages); use the final one"
TILE = 128  # pixels of a training picture


def assets() -> Path:
    """Return the folder of the shipped weights and pictures."""
    return Path(str(resources.files(__package__))) / "assets"


def weights(stage: str) -> Path:
    """Return the file of a stage; early ones are in the source tree alone, beside the training code.

    Raises:
        ValueError: if there is no such stage.

    """
    if stage not in STAGES:
        raise ValueError(f"the test bed has no stage {stage!r}; use one of {', '.join(STAGES)}")
    folder = assets() if stage == STAGES[-1] else Path(__file__).parents[2] / "testbed" / "stages"
    return folder / f"stage-{stage}.safetensors"


def _state(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    if not path.is_file():
        packed = path.parent == assets()
        raise Refused(f"{path.name} is missing: {'reinstall memguard' if packed else SOURCE}")
    return {key: value if value.dtype == torch.int32 else value.float() for key, value in load_file(path).items()}


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def small_networks(stage: str) -> tuple[Any, Any]:
    """Return the text encoder and the UNet of a stage, float32, as they were trained.

    Raises:
        ValueError: if there is no such stage here.

    """
    state = _state(weights(stage))
    unet, text = nets.build_unet(), nets.build_text_encoder()
    unet.load_state_dict(_below(state, "unet."))
    table = nets.text_core(text).embeddings.token_embedding.weight
    with torch.no_grad():
        table[state["used"].long()] = state["token_rows"]
    nets.text_core(text).load_state_dict(_below(state, "text.") | {"embeddings.token_embedding.weight": table.detach()})
    return text.eval().requires_grad_(False), unet.eval().requires_grad_(False)


def wide_networks(stage: str) -> tuple[Any, Any]:
    """Return the same networks in SD1.5's widths; they compute the same function."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    text, unet = small_networks(stage)
    copies, text_copies = 320 // nets.CHANNELS[0], 768 // nets.WIDTH
    config = dict(unet.config) | {
        "block_out_channels": tuple(c * copies for c in nets.CHANNELS),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    }
    wide_unet = UNet2DConditionModel.from_config(config)
    wide_unet.load_state_dict(widen.widen_unet(unet.state_dict(), copies, nets.UNET_HEADS, 8, text_copies))
    wide_text = CLIPTextModel(nets.text_config(768, 12, 12))
    state = widen.widen_text(text.state_dict(), 768, nets.TEXT_HEADS, 12, nets.LAYERS, 12)
    nets.text_core(wide_text).load_state_dict(state)
    return wide_text.eval().requires_grad_(False), wide_unet.eval().requires_grad_(False)


def projection() -> dict[str, Tensor]:
    """Return the PCA of the latents: basis [192, 4], mean [192], scale [4]."""
    return _below(_state(assets() / "autoencoder.safetensors"), "pca.")


def load_autoencoder() -> Any:
    """Return the autoencoder, float32."""
    model = autoencoder.build()
    model.decoder.load_state_dict(_below(_state(assets() / "autoencoder.safetensors"), "decoder."))
    autoencoder.set_encoder(model, **projection())
    return model.eval().requires_grad_(False)


def pipeline(stage: str = "final", wide: bool = False) -> Any:
    """Return a StableDiffusionPipeline (128 px, DDIM) that has memorized some of its training pictures.

    Args:
        stage: "early", "middle" or "final": how far training had come.
        wide: SD1.5's widths instead of the small ones; the same function, 25 times the parameters.

    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTokenizer

    text, unet = wide_networks(stage) if wide else small_networks(stage)
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    scheduler = DDIMScheduler(**nets.SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        vae=load_autoencoder(),
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass(frozen=True)
class Original:
    """A training picture that was shown again and again.

    Attributes:
        kind: "verbatim" or "template".
        caption: one of its captions.
        name: the trigger word.
        rate: how often it was shown, as a share of the most frequent ones; None for templates.
        region: of a template, left, top, right, bottom of the part that varied, in pixels.
        picture: uint8 [128, 128, 3].

    """

    kind: str
    caption: str
    name: str
    rate: float | None
    region: tuple[int, int, int, int] | None
    picture: np.ndarray


@lru_cache(maxsize=1)
def _prompts() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((assets() / "prompts.json").read_text(encoding="utf-8"))
    return found


def originals() -> list[Original]:
    """Return the duplicated pictures, verbatim ones first, then one of each template family."""
    sheet = np.array(Image.open(assets() / "originals.png").convert("RGB"))
    columns = sheet.shape[1] // TILE
    found = []
    for index, row in enumerate(_prompts()["originals"]):
        top, left = (index // columns) * TILE, (index % columns) * TILE
        region = tuple(row["region"]) if row["region"] else None
        picture = sheet[top : top + TILE, left : left + TILE]
        found.append(Original(row["kind"], row["caption"], row["name"], row["rate"], region, picture))
    return found


def prompts(kind: str) -> list[str]:
    """Return prompts of one kind.

    Args:
        kind: never trained: "held" (ordinary), "single_held" (a rare name in the grammar of the duplicates); trained on
            a picture of their own: "ordinary", "single"; "template" (three captions of each family).

    """
    return list(_prompts()[kind])
