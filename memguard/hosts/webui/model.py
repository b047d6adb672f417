"""What the WebUIs tell of a model: fingerprint and family. Part of the WebUI hosts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...calibration import fingerprint
from .places import Place

FLAGS = {"is_sdxl": "sdxl", "is_sd2": "sd2", "is_sd3": "sd3", "is_sd1": "sd15"}  # attributes of the engine
BACKUP = "network_weights_backup"  # of a layer that A1111 has put a LoRA into: weights, or weights and more

_fingerprints: WeakKeyDictionary[torch.nn.Module, tuple[tuple[Any, ...], str]] = WeakKeyDictionary()


def name_of(network: torch.nn.Module, engine: Any = None) -> str:
    """Return the fingerprint of the checkpoint under any LoRA, computed once for each that is loaded.

    Args:
        network: the UNet.
        engine: the WebUI's model around it; A1111 loads another checkpoint of the same kind into the same network.

    """
    file = _file(str(getattr(getattr(engine, "sd_checkpoint_info", None), "filename", "")))
    known = _fingerprints.get(network)
    if known is None or known[0] != file:
        known = _fingerprints[network] = file, fingerprint(_weights(network, _kept(engine)))
    return known[1]


def _file(name: str) -> tuple[Any, ...]:
    """Return what tells a checkpoint's file from another, and from what lay there before under its name."""
    try:
        found = os.stat(name)
    except OSError:
        return (name,)
    return name, found.st_mtime_ns, found.st_size


def _weights(network: torch.nn.Module, kept: Mapping[str, Tensor]) -> Iterator[Tensor]:
    for prefix, layer in network.named_modules():
        backup = getattr(layer, BACKUP, None)
        backup = backup[0] if isinstance(backup, tuple | list) else backup
        for name, weight in layer.named_parameters(recurse=False):
            own = backup if name == "weight" and isinstance(backup, Tensor) else weight
            yield kept.get(f"{prefix}.{name}", own)


def _kept(engine: Any) -> dict[str, Tensor]:
    """Return the weights that Forge has put a LoRA into, as they were before, by their names in the network."""
    patcher = getattr(getattr(engine, "forge_objects", None), "unet", None)
    keeper = getattr(getattr(patcher, "model", None), "lora_loader", patcher)  # Neo's patcher is its own
    backup = getattr(keeper, "backup", {})
    return {name.removeprefix("diffusion_model."): getattr(kept, "weight", kept) for name, kept in backup.items()}


def family(engine: Any) -> str:
    """Return "sd15", "sd2", "sdxl", "sd3" or "other"; a class named Flux is "flux"."""
    if type(engine).__name__ == "Flux":  # Flux2 is another model
        return "flux"
    return next((name for flag, name in FLAGS.items() if getattr(engine, flag, False)), "other")


def from_picture(p: Any) -> bool:
    """Return whether a pass starts from a picture: img2img, and the second pass of hires."""
    return bool(getattr(p, "is_hr_pass", False)) or getattr(p, "init_latent", None) is not None


def cfg(p: Any) -> float:
    """Return the guidance scale of the pass."""
    hires = getattr(p, "hr_cfg", None) if getattr(p, "is_hr_pass", False) else None
    return float(hires or p.cfg_scale)


def numbers(prompts: Sequence[str]) -> tuple[int, ...]:
    """Return the number of each image's prompt, where a batch holds several; none for one."""
    known = list(dict.fromkeys(prompts))
    return tuple(known.index(text) for text in prompts) if len(known) > 1 else ()


def prompts(p: Any) -> list[str]:
    """Return the prompt of each image of the pass."""
    hires = getattr(p, "hr_prompts", None) if getattr(p, "is_hr_pass", False) else None
    return list(hires or p.prompts or ())


def negatives(p: Any) -> list[str]:
    """Return the negative prompt of each image of the pass."""
    hires = getattr(p, "hr_negative_prompts", None) if getattr(p, "is_hr_pass", False) else None
    return list(hires or p.negative_prompts or ())


def place(p: Any, owner: Any = None) -> Place:
    """Return which pass of a generation is about to be sampled.

    Args:
        p: the host's StableDiffusionProcessing.
        owner: that of the generation, where this one is another extension's inside of it.

    """
    hires = bool(getattr(p, "is_hr_pass", False))
    whole = owner or p
    return Place(
        batch=int(getattr(whole, "iteration", 0) or 0),
        batches=int(whole.n_iter or 1),
        kind="inner" if owner is not None else "hires" if hires else "",
        prompt="\0".join(prompts(p)),
        painted=from_picture(p),
    )


def facts(p: Any) -> dict[str, Any]:
    """Return what is known of a batch before it is sampled, as fields of Report.

    Args:
        p: the host's StableDiffusionProcessing.

    """
    hires = bool(getattr(p, "is_hr_pass", False))
    return {
        "family": family(p.sd_model),
        "prompt": " | ".join(dict.fromkeys(prompts(p))),
        "negative_prompt": " | ".join(dict.fromkeys(negatives(p))),
        "seeds": tuple(int(seed) for seed in p.seeds or ()),
        "sampler": p.sampler_name,
        "steps": int((getattr(p, "hr_second_pass_steps", 0) if hires else 0) or p.steps),
        "cfg": cfg(p),
        "width": int((getattr(p, "hr_upscale_to_x", 0) if hires else 0) or p.width),
        "height": int((getattr(p, "hr_upscale_to_y", 0) if hires else 0) or p.height),
    }
