"""LoRA files on a pipeline: kohya's names, those of diffusers and peft, and ComfyUI's; put on with peft and off again.

Every name in a file is looked up among the layers of the pipeline, and every shape compared with the layer's, before
anything is changed: diffusers itself leaves out what it does not know. Families whose files fuse layers (Flux, Qwen,
...) go through the pipeline's own converter first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...audit.factors import DOWN, UP, check, stem
from ...testbed.ldm_names import unet_name
from ...troubles import Refused
from . import pipes

ADAPTER = "audited"
ENCODERS = ("text_encoder", "text_encoder_2")
OTHER_KINDS = re.compile(r"\.(hada_w|lokr_|dora_scale|lora_magnitude|lora_mid|oft_|glora|a1\.|b1\.)")
FEW = 3  # layers that an error names


@dataclass
class Lora:
    """A LoRA for one pipeline.

    Attributes:
        factors: layer, such as ``unet.mid_block.attentions.0.proj_in`` -> down [rank, in, ...], up [out, rank, ...].
        differences: parameter -> what is added to it; ComfyUI's training node trains norms and biases whole.
        left: keys of what is neither, such as a trained token beside the LoRA; it does not act.

    """

    factors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    differences: dict[str, Tensor] = field(default_factory=dict)
    left: tuple[str, ...] = ()

    def remark(self, name: str) -> tuple[str, ...]:
        """Return what the reader of an audit must know of a file, in a line, or nothing."""
        if not self.left:
            return ()
        some = ", ".join(self.left[:FEW])
        return (f"{name}: {len(self.left)} of its tensors are no part of a LoRA and do not act ({some})",)


def read(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file; pickles are never loaded.

    Raises:
        Refused: for anything else.

    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise Refused(f"{path.name}: is no .safetensors file; pickles (.pt, .ckpt, .bin) are never loaded")
    if not path.is_file():
        raise Refused(f"{path.name}: no such file")
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError):
        raise Refused(f"{path.name}: cannot be read; it is damaged, or not written to its end") from None


def fitted(pipe: Any, state: dict[str, Tensor], name: str) -> Lora:
    """Return the LoRA of a file for the layers of a pipeline.

    Args:
        pipe: a diffusers pipeline.
        state: tensors of the file.
        name: of the file, for errors.

    Raises:
        Refused: for a file that is no LoRA, another kind of adapter, one that is not whole or no numbers, or a LoRA for
            another base; names keys and shapes.

    """
    other = next((key for key in state if OTHER_KINDS.search(key)), None)
    if other is not None:
        raise Refused(f"{name}: {other} is of a LoHa, LoKr, DoRA or another relative of LoRA; only LoRA can be audited")
    if not any(DOWN.search(key) or UP.search(key) for key in state):
        has = ", ".join(sorted(state)[:FEW]) or "nothing"
        raise Refused(f"{name}: is no LoRA, it holds {has}; a whole model goes in by --checkpoint")
    check(state, name)
    layers = _layers(pipe)
    aliases = _aliases(pipe, layers)
    lora, unknown = _sorted(state, aliases)
    if unknown:
        converted, rest = _sorted(_converted(pipe, state), aliases)
        # an error names the keys of the file
        lora, unknown = (converted, rest) if converted.factors and not rest else (lora, unknown)
    wrong = [f"{layer} {_said(lora, layer)} for {list(_weight(layers, layer).shape)}" for layer in _unfit(lora, layers)]
    if unknown or wrong:
        total = len(lora.factors) + len(lora.differences) + len(unknown)
        parts = [f"{len(wrong)} of {total} layers have other shapes ({', '.join(wrong[:FEW])})"] if wrong else []
        parts += [f"{len(unknown)} of {total} are not in this model ({', '.join(unknown[:FEW])})"] if unknown else []
        raise Refused(f"{name}: is for another base model: {'; '.join(parts)}")
    return lora


@contextmanager
def applied(pipe: Any, lora: Lora) -> Iterator[None]:
    """Put a LoRA on a pipeline for the time of the block; every weight is then what it was before, bit for bit.

    Raises:
        Refused: if peft or the pipeline's class cannot.

    """
    loading = getattr(pipe, "load_lora_weights", None)
    if loading is None:
        raise Refused(f"{type(pipe).__name__} takes no LoRA in this version of diffusers")
    state: dict[str, Tensor] = {}
    for layer, (down, up) in lora.factors.items():
        state |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        if state:
            loading(state, adapter_name=ADAPTER)
        with torch.no_grad():
            for name, difference in lora.differences.items():
                value = _parameter(pipe, name)
                kept.append((value, value.detach().clone()))
                value.add_(difference.to(value).reshape(value.shape))
        yield
    finally:
        with torch.no_grad():
            for value, before in kept:
                value.copy_(before)
        if state:
            pipe.unload_lora_weights()


def _layers(pipe: Any) -> dict[str, nn.Module]:
    """Return what a LoRA can act on: component.layer -> module with a weight."""
    denoiser = pipes.text_to_image(pipe)
    first = "unet" if getattr(pipe, "unet", None) is denoiser else "transformer"
    parts = {first: denoiser} | {name: getattr(pipe, name, None) for name in ENCODERS}
    return {
        f"{part}.{name}": layer
        for part, module in parts.items()
        if isinstance(module, nn.Module)
        for name, layer in getattr(module, "_orig_mod", module).named_modules()
        if isinstance(getattr(layer, "weight", None), Tensor)
    }


def _aliases(pipe: Any, layers: dict[str, nn.Module]) -> dict[str, str]:
    """Return what files call a layer -> the layer."""
    found: dict[str, str] = {}
    depth = getattr(getattr(getattr(pipe, "unet", None), "config", None), "layers_per_block", None)
    for layer in layers:
        part, _, name = layer.partition(".")
        flat = name.replace(".", "_")
        if part in ENCODERS:
            number = ENCODERS.index(part) + 1
            core = name.removeprefix("text_model.")
            prefixes = [f"lora_te{number}_", *(["lora_te_"] if number == 1 else [])]
            flats = [f"{prefix}text_model_{core.replace('.', '_')}" for prefix in prefixes]
            comfy = f"text_encoders.{('clip_l', 'clip_g')[number - 1]}.transformer.text_model.{core}"
            found |= dict.fromkeys((*flats, comfy, f"{part}.{core}", f"{part}.text_model.{core}", layer), layer)
            continue
        found |= dict.fromkeys((layer, name, f"base_model.model.{name}", f"lora_{part}_{flat}"), layer)
        found |= dict.fromkeys((f"diffusion_model.{name}", f"lora_unet_{flat}"), layer)
        # old attention processors
        found[re.sub(r"\.to_(q|k|v|out)(?:\.0)?$", r".processor.to_\1", layer)] = layer
        if part == "unet" and isinstance(depth, int):
            try:
                ldm = unet_name(f"{name}.weight", depth).removesuffix(".weight")
            except (KeyError, IndexError, ValueError):
                continue
            # a block without attention has its upsampler one place earlier
            for each in (ldm, re.sub(r"\.2\.conv$", ".1.conv", ldm)):
                found |= dict.fromkeys((f"diffusion_model.{each}", f"lora_unet_{each.replace('.', '_')}"), layer)
    return found


def _sorted(state: dict[str, Tensor], aliases: dict[str, str]) -> tuple[Lora, list[str]]:
    """Return what acts on known layers, and the names of the others."""
    lora, unknown = Lora(), dict[str, None]()
    downs = {stem(key): value for key, value in state.items() if DOWN.search(key)}
    ups = {stem(key): value for key, value in state.items() if UP.search(key)}
    for layer in {**downs, **ups}:
        if layer not in aliases or layer not in downs or layer not in ups:
            unknown[layer] = None
            continue
        down, up = downs[layer].float(), ups[layer].float()
        alpha = state.get(f"{layer}.alpha")
        # kohya's rule; without alpha the factors are taken as they are. Folded in, so that peft scales by 1
        up = up if alpha is None else up * (float(alpha) / down.shape[0])
        lora.factors[aliases[layer]] = down, up
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        if not (DOWN.search(key) or UP.search(key)) and kind not in ("alpha", "diff", "diff_b"):
            lora.left = (*lora.left, key)
        if kind in ("diff", "diff_b"):
            if layer in aliases:
                lora.differences[f"{aliases[layer]}.{'weight' if kind == 'diff' else 'bias'}"] = value
            else:
                unknown[layer] = None
    return lora, list(unknown)


def _unfit(lora: Lora, layers: dict[str, nn.Module]) -> list[str]:
    """Return the layers whose shapes differ; factors of convolutions that are flat get the layer's shape."""
    wrong = []
    for layer, (down, up) in list(lora.factors.items()):
        shape = _weight(layers, layer).shape
        rank, inner = down.shape[0], shape[1:].numel()
        if len(shape) < 2 or down.numel() != rank * inner or up.numel() != shape[0] * rank or up.shape[0] != shape[0]:
            wrong.append(layer)
            continue
        ones = (1,) * (len(shape) - 2)
        lora.factors[layer] = down.reshape(rank, *shape[1:]), up.reshape(shape[0], rank, *ones)
    for name, value in lora.differences.items():
        layer, _, kind = name.rpartition(".")
        there = getattr(layers[layer], kind, None)
        if there is None or there.numel() != value.numel():
            wrong.append(layer)
    return wrong


def _weight(layers: dict[str, nn.Module], layer: str) -> Tensor:
    return layers[layer].weight  # type: ignore[return-value]


def _said(lora: Lora, layer: str) -> str:
    """Return the shape that a LoRA takes a layer to have."""
    if layer not in lora.factors:
        return str([list(value.shape) for name, value in lora.differences.items() if name.startswith(f"{layer}.")][0])
    down, up = lora.factors[layer]
    return str([up.shape[0], *down.shape[1:]])


def _converted(pipe: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a file under diffusers' names by the pipeline's own converter; nothing where it cannot."""
    try:
        found = pipe.lora_state_dict(dict(state), unet_config=getattr(getattr(pipe, "unet", None), "config", None))
    except Exception:  # whatever names of another base make the library stumble over
        return {}
    converted, alphas = (found[0], found[1] or {}) if isinstance(found, tuple) else (found, {})
    return {**converted, **{key: torch.as_tensor(value) for key, value in alphas.items()}}


def _parameter(pipe: Any, name: str) -> Tensor:
    part, _, rest = name.partition(".")
    layer, _, kind = rest.rpartition(".")
    module = getattr(pipe, part)
    module = getattr(module, "_orig_mod", module).get_submodule(layer)
    # peft holds the layer inside its own
    return getattr(getattr(module, "base_layer", module), kind)
