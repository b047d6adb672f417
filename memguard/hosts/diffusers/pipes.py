"""What a diffusers pipeline says about itself: its denoiser, family, fingerprint and the facts of a Report."""

from __future__ import annotations

import inspect
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from ...calibration import fingerprint

FAMILIES = {"SD3Transformer2DModel": "sd3", "FluxTransformer2DModel": "flux"}
# CLIP-L's width is SD1's text width and OpenCLIP-H's is SD2's
UNET_FAMILIES = {768: "sd15", 1024: "sd2"}


# what a prompt comes as; Kandinsky's and Stable Cascade's decoders get a picture that their prior made of it
BY_PROMPT = ("prompt", "prompt_embeds", "image_embeds")


def denoiser(pipe: Any) -> nn.Module | None:
    """Return what predicts noise in a pipeline, or None."""
    for name in ("unet", "transformer", "prior", "decoder"):  # the last two are Kandinsky's and Stable Cascade's
        module = getattr(pipe, name, None)
        if isinstance(module, nn.Module):
            return module
    return None


def text_to_image(pipe: Any) -> nn.Module:
    """Return the denoiser of a pipeline that makes pictures from text alone.

    Raises:
        ValueError: for any other pipeline, naming what it has or lacks.

    """
    module = denoiser(pipe)
    known = inspect.signature(type(pipe).__call__).parameters
    lacks = [f"no {name}" for name in ("prompt", "num_images_per_prompt") if name not in known]
    lacks += [f"no {name}" for name in ("encode_prompt", "prepare_latents") if not hasattr(pipe, name)]
    lacks += ["no unet or transformer"] if module is None else []
    lacks += ["a picture to start from"] if {"image", "control_image"} & set(known) else []
    if module is None or lacks:
        raise ValueError(
            f"MemGuard does not know how {type(pipe).__name__} makes pictures from text alone: it has {lacks[0]}"
        )
    return module


def known(pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the pipeline's call takes; None is the pipeline's own."""
    names = inspect.signature(type(pipe).__call__).parameters
    return {name: value for name, value in call.items() if name in names and value is not None}


def size(pipe: Any, module: nn.Module, height: int | None, width: int | None) -> dict[str, int | None]:
    """Return both sides where one is given: StableDiffusionPipeline drops a height without a width, silently.

    None of them where none is given, which leaves them to the pipeline.

    Raises:
        ValueError: for a side that is no multiple of 8, or that cannot be filled in.

    """
    for side in (height, width):
        if side is not None and (side < 8 or side % 8):
            raise ValueError(f"a picture of {height} x {width} (height x width): give multiples of 8")
    if height is None and width is None:
        return {}
    if height is not None and width is not None:
        return {"height": height, "width": width}
    own = own_side(pipe, module)
    if own is None:
        raise ValueError("give height and width together: the model has no size of its own to fill in")
    return {"height": height or own, "width": width or own}


def own_side(pipe: Any, module: nn.Module) -> int | None:
    """Return height and width, pixels, of the square that a pipeline makes unless it is told otherwise; None: unknown.

    Args:
        pipe: the pipeline.
        module: its denoiser.

    """
    latents = getattr(module, "config", {}).get("sample_size") or getattr(pipe, "default_sample_size", None)
    return latents * latent_pixels(pipe) if isinstance(latents, int) else None


def family(module: nn.Module) -> str:
    """Return the family of a denoiser as StepEvidence names it."""
    plain = getattr(module, "_orig_mod", module)
    config = getattr(plain, "config", {})
    if type(plain).__name__ != "UNet2DConditionModel":
        return FAMILIES.get(type(plain).__name__, "other")
    if config.get("addition_embed_type") == "text_time":
        return "sdxl"
    return UNET_FAMILIES.get(config.get("cross_attention_dim") or 0, "other")


def eos_padded(pipe: Any, width: int) -> int:
    """Return how many of an encoded prompt's features come from an encoder that fills prompts up with EOS.

    Args:
        pipe: the pipeline.
        width: number of features.

    """
    tokenizer: Any = getattr(pipe, "tokenizer", None)
    module = denoiser(pipe)  # never asked whether it is true: a compiled one has no length
    if tokenizer is None or (module is not None and family(module) in ("sd3", "flux")):
        return 0  # what SD3 and Flux see of CLIP goes through joint attention and the pooled vector
    if getattr(tokenizer, "pad_token_id", None) != getattr(tokenizer, "eos_token_id", ""):
        return 0
    own = getattr(getattr(pipe, "text_encoder", None), "config", None)
    return min(width, int(getattr(own, "hidden_size", width)))


def name_of(module: nn.Module) -> str:
    """Return the fingerprint of a denoiser. LoRA layers are left out: they ride on the same checkpoint."""
    return fingerprint(weight for name, weight in module.named_parameters() if "lora_" not in name)


def learns_variance(pipe: Any) -> bool:
    """Whether the second half of the channels that the model predicts is its variance (IF's super-resolution)."""
    config = getattr(getattr(pipe, "scheduler", None), "config", {})
    return type(pipe).__name__.startswith("IF") or config.get("variance_type") in ("learned", "learned_range")


def latent_pixels(pipe: Any) -> int:
    """Return the number of pixels per latent, along one side; IF has no autoencoder, and its latents are pixels."""
    encodes = any(getattr(pipe, name, None) is not None for name in ("vae", "movq", "vqvae"))
    return int(getattr(pipe, "vae_scale_factor", 8 if encodes else 1))


def patch(pipe: Any) -> int:
    """Return how many latents a picture's sides are multiples of: transformers take them in squares of 2 x 2."""
    return 1 if isinstance(getattr(pipe, "unet", None), nn.Module) else 2


def model_calls(pipe: Any) -> int:
    """Return the number of timesteps of the run; img2img leaves out the first ones of its schedule."""
    return int(getattr(pipe, "_num_timesteps", None) or len(pipe.scheduler.timesteps))


def arguments(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``call(*args, **kwargs)`` by name, defaults included; empty if they do not fit."""
    try:
        bound = inspect.signature(call).bind(*args, **kwargs)
    except TypeError:
        return {}  # the pipeline itself will say so
    bound.apply_defaults()
    return dict(bound.arguments)


def guidance(given: dict[str, Any]) -> float | None:
    """Return the guidance scale of a call; Flux calls that of two predictions ``true_cfg_scale``."""
    value = given.get("true_cfg_scale", given.get("guidance_scale"))
    return float(value) if isinstance(value, int | float) else None


def guided(pipe: Any, given: dict[str, Any]) -> tuple[bool, float | None]:
    """Return whether a call is by a prompt, and its guidance scale; modular pipelines have that of a guider.

    Args:
        pipe: the pipeline.
        given: from ``arguments``.

    """
    by_prompt = any(name in {**given, **given.get("kwargs", {})} for name in BY_PROMPT)
    scale = guidance(given)
    own = getattr(getattr(pipe, "guider", None), "guidance_scale", None) if scale is None else None
    return by_prompt, float(own) if isinstance(own, int | float) else scale


def unguided(module: nn.Module, cfg: float | None) -> str:
    """Return why nothing is predicted without the prompt.

    Args:
        module: the denoiser.
        cfg: guidance scale of the call, where it is known.

    """
    config = getattr(module, "config", {})
    remedy = "reference='empty' spends a row per image"
    if config.get("guidance_embeds") or config.get("time_cond_proj_dim"):
        why = "guidance is built into the model"
    elif cfg is not None and cfg > 1:
        return f"the pipeline was given cfg {cfg:g}, and no prediction without the prompt was seen; {remedy}"
    else:
        why = "guidance is off" if cfg is None else f"cfg is {cfg:g}"
    return f"{why}, so the pipeline predicts nothing without the prompt; {remedy}"


@lru_cache(maxsize=1)  # reading the metadata of a package costs a file
def host_facts() -> dict[str, Any]:
    """Return the facts that hold for every run in this process."""
    return {"host": "diffusers", "host_version": version("diffusers")}


def run_facts(pipe: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the facts of one call that its arguments tell.

    Args:
        pipe: the pipeline.
        given: from ``arguments``.

    """
    prompts, images = given.get("prompt"), given.get("num_images_per_prompt") or 1
    generators = given.get("generator")
    generators = generators if isinstance(generators, list) else [generators]
    notes = []
    if isinstance(prompts, list) and len(prompts) > 1:
        notes.append(f"scores of {len(prompts)} prompts x {images} images, prompt by prompt")
    if given.get("ip_adapter_image") is not None or given.get("ip_adapter_image_embeds") is not None:
        notes.append("an image prompt acts besides the prompt; the score is of both")
    module = denoiser(pipe)
    if module is not None and any("lora_" in name for name, _ in module.named_parameters()):
        notes.append("LoRA layers are loaded; model and profile are those of the checkpoint without them")
    return {
        "family": "other" if module is None else family(module),
        "prompt": _text(prompts),
        "negative_prompt": _negative(given),
        "seeds": tuple(g.initial_seed() for g in generators if isinstance(g, torch.Generator)),
        "sampler": type(getattr(pipe, "scheduler", None)).__name__,
        "steps": given.get("num_inference_steps"),
        "cfg": guidance(given),
        "width": given.get("width"),
        "height": given.get("height"),
        "notes": tuple(notes),
    }


def _negative(given: dict[str, Any]) -> str | None:
    """Return the negative prompt; None where it is not known: vectors, or another text for each image."""
    if given.get("negative_prompt_embeds") is not None:
        return None
    texts = given.get("negative_prompt")
    texts = list(dict.fromkeys(texts)) if isinstance(texts, list | tuple) else [texts or ""]
    return _text(texts) if len(texts) == 1 else None


def _text(prompt: Any) -> str | None:
    return "\n".join(str(p) for p in prompt) if isinstance(prompt, list) else prompt
