"""One prompt on a diffusers UNet, for the search of neurons: the probe of memguard.neurons.

The pipeline itself draws the noise, encodes the prompt and builds the arguments of its UNet; it is stopped before
the first row is computed, and the rows of the search are made with those arguments. Prompt rows only: there is no
guidance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...aside import aside
from ...neurons.probe import Masks, NoGradient, Rows
from . import pipes
from .attention import cross_layers, no_layers
from .blocking import blocking, eager
from .caches import differentiable
from .calls import Call
from .levels import level
from .methods import encoding, methods
from .rows import UNCALLED, Enough, Prompts, own, until_enough

STEPS = 50  # of the schedule; its first or second timestep is used
NEMO = ("down", "mid")  # NeMo searches the seven layers of SD1's down blocks and middle


def value_layers(module: nn.Module, wanted: str | Sequence[str] | None = None) -> dict[str, Any]:
    """Return cross-attention layers by name, in the order of execution.

    Args:
        module: the denoiser.
        wanted: names, or "all"; None takes those of the down blocks and the middle, as NeMo does, or all of a model
            that has none there.

    Raises:
        ValueError: for a model without such layers, or a name that is none of them.

    """
    plain = getattr(module, "_orig_mod", module)
    layers = cross_layers(plain)
    if not layers:
        raise ValueError(
            f"{no_layers(plain)}, so there are no value neurons of the prompt; use a model with a UNet (SD1, SD2, SDXL)"
        )
    if wanted is None:
        return {n: layer for n, layer in layers.items() if n.startswith(NEMO)} or layers
    if wanted == "all":
        return layers
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if name not in layers:
            raise ValueError(f"layers: {name!r} is no cross-attention layer of this model; it has {', '.join(layers)}")
    return {name: layer for name, layer in layers.items() if name in wanted}


@dataclass(frozen=True)
class Start:
    """The first call of a run, before it was computed.

    ``module`` is the denoiser as it was written, ``call`` holds its inputs, one row per image.
    """

    module: nn.Module
    call: Call
    prompts: Prompts


def start(pipe: Any, prompt: str, images: int, seed: int, height: int | None = None, width: int | None = None) -> Start:
    """Let a pipeline prepare a run and stop it before the first row is computed.

    Raises:
        ValueError: for a prompt that is no text, or a pipeline that does not make pictures from text alone or that does
            not call its denoiser.

    """
    if not isinstance(prompt, str):
        raise ValueError(f"prompt is {prompt!r:.60}; give a text")
    if images < 1:
        raise ValueError(f"num_images is {images}; at least 1 is needed")
    module = pipes.text_to_image(pipe)
    plain = getattr(module, "_orig_mod", module)
    seen: list[Call] = []

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = kwargs.get("sample", args[0] if args else None)
        seen.append(Call.of(plain, args, kwargs, (x,)))
        raise Enough

    prompts = Prompts("")
    given = {
        "prompt": prompt,
        "num_images_per_prompt": images,
        "num_inference_steps": STEPS,
        "guidance_scale": 1.0,
        "generator": torch.Generator("cpu").manual_seed(seed),
        "output_type": "latent",
    } | pipes.size(pipe, module, height, width)
    before = getattr(pipe, "_progress_bar_config", {})
    name = "unet" if getattr(pipe, "unet", None) is module else "transformer"
    handle = plain.register_forward_pre_hook(hook, with_kwargs=True)
    pipe.set_progress_bar_config(disable=True)
    try:
        object.__setattr__(pipe, name, plain)
        with aside(plain), eager(plain), methods(pipe, **encoding(pipe, prompts.learn)), until_enough(plain):
            pipe(**pipes.known(pipe, given))
    finally:
        object.__setattr__(pipe, name, module)
        handle.remove()
        pipe.set_progress_bar_config(**before)
    if not seen:
        raise ValueError(UNCALLED)
    return Start(plain, seen[0], prompts)


def activations(layers: Mapping[str, Any], text: Tensor) -> dict[str, Tensor]:
    """Return |to_v(text)| averaged over the tokens, float32 [rows, width] per layer, on the CPU.

    Args:
        layers: cross-attention layers by name.
        text: encoded prompts, [rows, tokens, d].

    """
    found = {}
    with torch.no_grad(), own(*layers.values()):
        for name, layer in layers.items():
            given = layer.norm_encoder_hidden_states(text) if layer.norm_cross else text
            found[name] = layer.to_v(given).float().abs().mean(1).cpu()
    return found


class UNetProbe:
    """See memguard.neurons.probe.Probe.

    Args:
        pipe: the pipeline.
        begun: from ``start``.
        layers: from ``value_layers``.
        seed: of the noise.

    """

    def __init__(self, pipe: Any, begun: Start, layers: Mapping[str, Any], seed: int) -> None:
        self.module, self.call, self.prompts, self.seed = begun.module, begun.call, begun.prompts, seed
        self.scheduler = pipe.scheduler
        self.hooked = dict(layers)
        self.layers = {name: int(layer.to_v.out_features) for name, layer in layers.items()}
        self.model = pipes.name_of(self.module)
        self.rows = Rows()
        self.parity: str | None = None

    def start(self, parity: str | None = None) -> tuple[Tensor, float]:
        """Return the inputs of the first step; with parity, float32 noise of the seed at the second timestep."""
        self.parity = parity
        x = self.call.x.float()
        if parity is None:
            return x, float(self.call.timestep.flatten()[0])
        noise = torch.randn(x.shape, generator=torch.Generator("cpu").manual_seed(self.seed))
        return noise.to(x.device), float(self.scheduler.timesteps[1])

    def activations(self) -> dict[str, Tensor]:
        """Return the activations of the prompt."""
        return {name: a[0] for name, a in activations(self.hooked, self.call.text[:1]).items()}

    def noise(self, x: Tensor, t: float, masks: Masks) -> Tensor:
        """Predict with the prompt and with blocked neurons."""
        timestep = torch.as_tensor(t, device=x.device, dtype=self.call.timestep.dtype)
        with eager(self.module), blocking(self.hooked, masks):
            made = self.call.moved(x.to(self.call.x), timestep)
        self.rows.forward += len(x)
        if self.parity is not None:
            return made.float()  # the official code does not ask what the model predicts
        return level(self.scheduler, timestep).convert(made, x)

    @contextmanager
    def gradients(self, gates: Masks) -> Iterator[int]:
        """Gate the values, and compute blocks again in the backward pass, so that no activations are kept."""
        for name, weight in self.module.named_parameters():
            if weight.dtype.itemsize < 2:
                raise NoGradient(f"the weights are quantised ({name} is {str(weight.dtype).removeprefix('torch.')})")
        with blocking(self.hooked, gates), differentiable(self.module, tuple(gates.values())) as blocks:
            yield 3 if blocks else 2


def probe_of(
    pipe: Any,
    prompt: str,
    images: int,
    seed: int,
    layers: str | Sequence[str] | None,
    height: int | None = None,
    width: int | None = None,
) -> UNetProbe:
    """Return the probe of a prompt; arguments and errors are those of ``value_layers`` and ``start``."""
    # the layers first: SD3 and Flux must be told why, not how they encode
    chosen = value_layers(pipes.text_to_image(pipe), layers)
    return UNetProbe(pipe, start(pipe, prompt, images, seed, height, width), chosen, seed)
