"""What a ModelPatcher tells about its model: fingerprint, family, schedule, size, and whether a LoRA changed it.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_sampling
import torch
from torch import Tensor

from ...calibration import fingerprint
from ...records import Parameterization
from . import patches

# by the very class of comfy.supported_models: newer ones inherit from these and have other latents and encoders
FAMILIES = {
    "SD15": "sd15",
    "SD20": "sd2",
    "SDXL": "sdxl",
    "SSD1B": "sdxl",
    "Segmind_Vega": "sdxl",
    "KOALA_700M": "sdxl",
    "KOALA_1B": "sdxl",
    "SD3": "sd3",
    "Flux": "flux",
    "FluxInpaint": "flux",
    "FluxSchnell": "flux",
}
NETWORK = "diffusion_model"

_fingerprints: WeakKeyDictionary[torch.nn.Module, str] = WeakKeyDictionary()


def name_of(patcher: Any) -> str:
    """Return the fingerprint of the checkpoint under any LoRA, computed once per loaded model."""
    if patcher.model not in _fingerprints:
        _fingerprints[patcher.model] = fingerprint(_base_weights(patcher))
    return _fingerprints[patcher.model]


def _base_weights(patcher: Any) -> Iterator[Tensor]:
    for name, weight in getattr(patcher.model, NETWORK).named_parameters():
        # a LoRA is added to the weights in place; ComfyUI keeps the originals
        kept = patcher.backup.get(f"{NETWORK}.{name}")
        original = weight if kept is None else kept.weight
        if type(original) not in (Tensor, torch.nn.Parameter):
            original = torch.empty(original.shape, device="meta")  # quantised: no values to read
        yield original


def family(patcher: Any) -> str:
    """Return "sd15", "sd2", "sdxl", "sd3", "flux" or "other"."""
    return FAMILIES.get(type(patcher.model.model_config).__name__, "other")


def parameterization(sampling: Any) -> Parameterization:
    """Return what (x - denoised) / sigma is for this model: epsilon, or the velocity of a flow model."""
    return "flow_velocity" if isinstance(sampling, comfy.model_sampling.CONST) else "epsilon"


def timestep(sampling: Any, sigma: Tensor) -> float | None:
    """Return the place on the 1000-step training schedule; None where the model has none."""
    if not isinstance(sampling, comfy.model_sampling.ModelSamplingDiscrete):
        return None
    return float(sampling.timestep(sigma[:1]))


def pixels(patcher: Any, shape: Sequence[int]) -> tuple[int | None, int | None]:
    """Return width and height of the picture that latents of a shape decode to; None for sound, [B, C, n]."""
    ratio = getattr(patcher.model.latent_format, "spacial_downscale_ratio", 8)
    return (shape[-1] * ratio, shape[-2] * ratio) if len(shape) > 3 else (None, None)


def remarks(patcher: Any, conds: Iterable[Any] = ()) -> tuple[str, ...]:
    """Return what makes this model differ from its checkpoint, for a run of some conditionings."""
    found = []
    weights = sum(key.startswith(NETWORK) for key in patcher.patches)
    if weights:
        found.append(f"a LoRA or another patch changes {weights} weights; the fingerprint is the checkpoint's")
    hooked = patches.hooked(conds)
    if hooked:
        found.append(f"a LoRA on a prompt (a hook) changes {hooked} weights; the fingerprint is the checkpoint's")
    changes = patches.changes(patcher)
    if changes:
        found.append(patches.REMARK.format("; ".join(changes)))
    return tuple(found)


def sampled(patcher: Any) -> str:
    """Return the name of what samples: the checkpoint's fingerprint, or another where nodes change its predictions."""
    return patches.named(name_of(patcher), patcher)
