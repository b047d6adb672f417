"""Write the test bed as a diffusers folder or as an SD1.5 checkpoint. Both check themselves and are deterministic."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from . import autoencoder, kl, loader
from . import model as nets
from .ldm_names import unet_name

TOLERANCE = 1e-5  # of the widening, relative to the largest prediction, float32


class ExportError(RuntimeError):
    """The export does not compute what it should."""


def check_widening(stage: str) -> float:
    """Return the largest difference between small and wide networks, relative to the largest prediction.

    Raises:
        ExportError: if it is above 1e-5.

    """
    text, unet = loader.small_networks(stage)
    wide_text, wide_unet = loader.wide_networks(stage)
    ids = torch.full((2, 77), 49407)
    ids[:, 0] = 49406
    ids[1, 1:6] = torch.tensor([320, 736, 7285, 525, 2225])
    x = torch.randn(2, 4, nets.LATENT, nets.LATENT, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        small = unet(x, torch.tensor([981, 301]), text(ids).last_hidden_state).sample
        wide = wide_unet(x, torch.tensor([981, 301]), wide_text(ids).last_hidden_state).sample
    difference = float((small - wide).abs().max() / small.abs().max())
    if not difference <= TOLERANCE:
        raise ExportError(f"the widened networks differ by {difference:.2g}, allowed is {TOLERANCE:.0e}; report this")
    return difference


def to_diffusers(folder: Path, stage: str = "final", wide: bool = False) -> None:
    """Write a folder that ``StableDiffusionPipeline.from_pretrained`` loads.

    Raises:
        ExportError: if the written folder loads to something else.

    """
    from diffusers import StableDiffusionPipeline

    pipe = loader.pipeline(stage, wide)
    pipe.save_pretrained(folder, safe_serialization=True)
    again = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    for name in ("unet", "text_encoder", "vae"):
        ours, theirs = getattr(pipe, name).state_dict(), getattr(again, name).state_dict()
        wrong = [key for key, value in ours.items() if not torch.equal(value, theirs[key])]
        if wrong:
            raise ExportError(f"{folder}: {name}.{wrong[0]} differs after loading; write to another folder")


def checkpoint(stage: str = "final", dtype: torch.dtype = torch.float16, vae: str = "taesd") -> dict[str, Tensor]:
    """Return the tensors of an SD1.5 checkpoint (UNet, CLIP-L, autoencoder) under ldm's names.

    Args:
        stage: "early", "middle" or "final".
        dtype: of all tensors.
        vae: "taesd" (trained decoder) or "kl" (SD1.5's own shape, blurred pictures; the WebUIs accept no other).

    """
    text, unet = loader.wide_networks(stage)
    tensors = {f"model.diffusion_model.{unet_name(key)}": value for key, value in unet.state_dict().items()}
    prefix = "cond_stage_model.transformer.text_model."
    tensors |= {prefix + key: value for key, value in nets.text_core(text).state_dict().items()}
    if vae == "kl":
        coder = kl.build(**loader.projection())
    else:
        coder = autoencoder.to_taesd(dict(loader.load_autoencoder().state_dict()))
    tensors |= {f"first_stage_model.{key}": value for key, value in coder.items()}
    return {key: tensors[key].to(dtype).contiguous() for key in sorted(tensors)}


def to_checkpoint(file: Path, stage: str = "final", dtype: torch.dtype = torch.float16, vae: str = "taesd") -> float:
    """Write an SD1.5 checkpoint that ComfyUI's CheckpointLoaderSimple loads; with ``vae="kl"`` also A1111's .yaml.

    Returns:
        The relative difference that the widening causes in float32.

    Raises:
        ExportError: if the widening or the written file is wrong.

    """
    from safetensors.torch import load_file, save_file

    difference = check_widening(stage)
    tensors = checkpoint(stage, dtype, vae)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(file), metadata={"format": "pt", "model": f"memguard test bed, {stage}"})
    file.chmod(0o644)  # safetensors writes 0600; a host that runs as another user must read it
    again = load_file(str(file))
    wrong = [key for key, value in tensors.items() if not torch.equal(value, again[key])]
    if wrong:
        raise ExportError(f"{file}: {wrong[0]} differs after writing; is the disk full?")
    if vae == "kl":
        file.with_suffix(".yaml").write_text((loader.assets() / "a1111.yaml").read_text(encoding="utf-8"))
    return difference
