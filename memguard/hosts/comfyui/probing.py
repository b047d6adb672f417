"""One prompt on a UNet in ComfyUI, for the search of neurons: the probe of memguard.neurons.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from ...neurons.probe import Masks, NoGradient, Rows
from ..inference import differentiable
from . import model
from .attention import cross_layers
from .calls import Call, Cond, alone, normal_cond, text_of

NEMO = ("down", "mid")  # NeMo searches the seven layers of SD1's down blocks and middle
OFFICIAL = 961.0  # the second timestep of the 50 steps that the official code makes


class ComfyProbe:
    """See memguard.neurons.probe.Probe.

    Args:
        guider: of a run in progress, its network loaded.
        cond: the prompt, processed by the sampler.
        noise: float32 [n, C, h, w] of variance one, one per seed.
        options: model_options.
        every: whether to search all cross-attention layers, and not NeMo's only.

    Raises:
        Unreadable: for a model without cross-attention.

    """

    def __init__(self, guider: Any, cond: Cond, noise: Tensor, options: dict[str, Any], every: bool = False) -> None:
        self.guider, self.cond, self.noise_of_seeds, self.options = guider, cond, noise, alone(options)
        found = cross_layers(guider.inner_model)
        early = {name: layer for name, layer in found.items() if name.startswith(NEMO)}
        self.hooked = found if every or not early else early
        self.layers = {name: int(layer.to_v.weight.shape[0]) for name, layer in self.hooked.items()}
        self.model = model.name_of(guider.model_patcher)
        self.rows = Rows()

    def start(self, parity: str | None = None) -> tuple[Tensor, float]:
        """Return the noise of the seeds and the first timestep; with parity, the second."""
        sampling = self.guider.inner_model.model_sampling
        first = float(sampling.timestep(torch.as_tensor(sampling.sigma_max).reshape(1)))
        return self.noise_of_seeds.float(), first if parity is None else OFFICIAL

    def activations(self) -> dict[str, Tensor]:
        """Return the activations of the prompt."""
        return activations(self.hooked, text_of(self.cond)[:1])

    def noise(self, x: Tensor, t: float, masks: Masks) -> Tensor:
        """Predict with the prompt and with blocked neurons."""
        sampling, cond = self.guider.inner_model.model_sampling, self.cond
        sigma = sampling.sigma(torch.tensor(t)).float().to(x.device).expand(len(x))
        call = Call(self.guider, x * (1 + sigma.reshape(-1, 1, 1, 1) ** 2).sqrt(), sigma, self.options)
        if torch.is_grad_enabled():
            call, cond = call.normal(), normal_cond(cond)
        with blocking(self.hooked, masks):
            made = call.predict([[cond]])[0]
        self.rows.forward += len(x)
        return made

    @contextmanager
    def gradients(self, gates: Masks) -> Iterator[int]:
        """Gate the values, and compute blocks again in the backward pass, so that no activations are kept."""
        network = self.guider.inner_model.diffusion_model
        for name, weight in network.named_parameters():
            if weight.dtype.itemsize < 2:
                raise NoGradient(f"the weights are quantised ({name} is {str(weight.dtype).removeprefix('torch.')})")
        held = tuple(gates.values())
        with blocking(self.hooked, gates), differentiable(network, held) as blocks:
            yield 3 if blocks else 2


def activations(layers: Mapping[str, Any], text: Tensor) -> dict[str, Tensor]:
    """Return |to_v(text)| averaged over the tokens, float32 [width] per layer, on the CPU; text is [1, tokens, d]."""
    found = {}
    with torch.no_grad():
        for name, layer in layers.items():
            casts = getattr(layer.to_v, "comfy_cast_weights", False)  # weights come to their input, wherever they are
            given = text if casts else text.to(layer.to_v.weight)
            found[name] = layer.to_v(given).float().abs().mean(1)[0].cpu()
    return found


@contextmanager
def blocking(layers: Mapping[str, Any], masks: Masks) -> Iterator[None]:
    """Multiply the values of some layers with factors [rows, width] for the time of the block; no hook stays."""
    with ExitStack() as stack:
        for name, factors in masks.items():

            def hook(_module: Any, _inputs: Any, output: Tensor, factors: Tensor = factors) -> Tensor:
                return output * factors.to(output)[:, None]

            stack.callback(layers[name].to_v.register_forward_hook(hook).remove)
        yield
