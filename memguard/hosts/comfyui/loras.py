"""A LoRA on a MODEL and its CLIP as ComfyUI's own loader applies it, and whether it was made for them.

ComfyUI leaves out what it does not know and goes on where shapes differ, with lines in its log. An audit of such a LoRA
would say that it copies nothing, so keys and shapes are looked at first, by ComfyUI's own table of names.

Part of the ComfyUI host.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.sd
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...audit import checkpoints
from ...audit.factors import check
from ...troubles import Refused

NONE = "none"  # the choice of no file
FOLDER = "loras"
TRAINED = "trained LoRA"  # the name of one that comes from a training node
FEW = 3  # keys that an error names


@dataclass(frozen=True)
class Lora:
    """A LoRA, as tensors under the names of its file.

    Attributes:
        name: of the file.
        digest: 16 hex digits that name what is in it.
        age: how long it was trained, as far as it says so.
        state: name -> tensor.

    """

    name: str
    digest: str
    age: checkpoints.Age
    state: Mapping[str, Tensor]


def names() -> list[str]:
    """Return the LoRA files that ComfyUI finds, behind the choice of none."""
    return [NONE, *folder_paths.get_filename_list(FOLDER)]


def path_of(name: str) -> Path:
    """Return the path of a LoRA file.

    Raises:
        ValueError: if there is none of that name, or if it is a pickle.

    """
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise Refused(f"LoRA {name!r} is not below models/{FOLDER}; reload the page if it is new")
    if Path(path).suffix != ".safetensors":
        raise Refused(f"{name}: is no .safetensors file; pickles (.pt, .ckpt, .bin) are never loaded")
    return Path(path)


def given(state: Mapping[str, Tensor] | None, name: str) -> Lora:
    """Return the LoRA of a training node, or else of a file.

    Args:
        state: LORA_MODEL; None where nothing is connected.
        name: of a file, or NONE.

    Raises:
        ValueError: in one line, unless there is exactly one.

    """
    if (state is None) == (name == NONE):
        raise Refused("give one LoRA: connect lora, or choose a file as lora_name and connect nothing")
    if state is not None:
        found = hashlib.sha256()
        for key, tensor in sorted(state.items()):
            found.update(key.encode("utf-8", "backslashreplace"))
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return Lora(TRAINED, found.hexdigest()[:16], checkpoints.Age(), state)
    path = path_of(name)
    if checkpoints.metadata(path) is None:
        raise Refused(f"{name}: cannot be read; it is damaged, or not written to its end")
    state = comfy.utils.load_torch_file(str(path), safe_load=True)
    return Lora(name, checkpoints.digest(path), checkpoints.age(path), state)


def applied(patcher: Any, clip: Any, lora: Lora) -> tuple[Any, Any, tuple[str, ...]]:
    """Return MODEL and CLIP with a LoRA at strength 1, and notes on what of it acts on neither.

    CLIP is the same object where the LoRA does not change it.

    Raises:
        ValueError: for a LoRA for another base, or one that is not whole or no numbers; names keys and shapes.

    """
    check(lora.state, lora.name)
    state = comfy.lora_convert.convert_lora(dict(lora.state))
    tables = (
        comfy.lora.model_lora_keys_unet(patcher.model, {}),
        comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {}),
    )
    loaded = [comfy.lora.load_lora(state, table, log_missing=False) for table in tables]
    modules = (patcher.model, clip.cond_stage_model)
    wrong = [said for parts, module in zip(loaded, modules, strict=True) for said in _unfit(parts, module)]
    total = sum(map(len, loaded))
    unknown = sorted({stem for key in state if (stem := _unknown(key, tables))})
    if not total:
        has = ", ".join(unknown[:FEW]) or "nothing"
        raise Refused(f"{lora.name}: is no LoRA for this model: it holds {has}, and the model has no such layer")
    if wrong:
        said = ", ".join(wrong[:FEW])
        raise Refused(
            f"{lora.name}: is for another base model: {len(wrong)} of {total} layers have other shapes ({said})"
        )
    notes: tuple[str, ...] = ()
    if unknown:
        some = ", ".join(unknown[:FEW])
        notes = (f"{lora.name}: {len(unknown)} of its layers are not in this model and do not act ({some})",)
    changed, encoder = comfy.sd.load_lora_for_models(patcher, clip if loaded[1] else None, dict(lora.state), 1.0, 1.0)
    return changed, encoder if loaded[1] else clip, notes


def _unknown(key: str, tables: tuple[dict[str, Any], ...]) -> str:
    """Return the layer of a key that no table knows; "" where one does. A key is the layer's name and what follows."""
    ends = [found.start() for found in re.finditer(r"\.|_lora\b", key)]
    if any(key[:end] in table for end in ends for table in tables):
        return ""
    return re.sub(r"[._]lora[._]?(?:up|down|A|B|linear_layer)\b.*$|\.(?:alpha|diff|diff_b)$", "", key)


def _unfit(loaded: Mapping[Any, Any], module: Any) -> Iterator[str]:
    """Say of each layer whose shape differs what the LoRA takes it to be."""
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for target, patch in loaded.items():
        name, part = (target, None) if isinstance(target, str) else target[:2]
        shape = list(shapes.get(name, ()))
        if part is not None and shape:  # a layer that the network has fused with others
            shape[part[0]] = part[2]
        made = _shape(patch)
        if made is not None and (made[0] != (shape or [0])[0] or math.prod(made) != math.prod(shape)):
            yield f"{name.removesuffix('.weight')} {made} for {shape}"


def _shape(patch: Any) -> list[int] | None:
    """Return the shape of the weight that a patch is for; None where its kind does not say."""
    if isinstance(patch, tuple):  # ("diff", (tensor,))
        return list(patch[1][0].shape)
    if getattr(patch, "name", None) != "lora":
        return None
    up, down, _, middle, _, reshaped = patch.weights
    if middle is not None or reshaped is not None:
        return None
    if up.shape[1] != down.shape[0]:
        return [0]
    return [up.shape[0], *down.shape[1:]]
