"""One call of a unet or transformer: its input, its text, its prediction as an image, and how to repeat it.

Room: memguard.hosts, diffusers. May import: memguard.attributions, torch, einops.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ...attributions.moment import Encoded
from .rows import Unscored, own

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


@contextmanager
def listening(module: nn.Module, hook: Hook) -> Iterator[None]:
    """Call ``hook(module, args, kwargs, output)`` after every call of a module; leaves no hook behind."""
    compiled = module._compiled_call_impl
    if compiled is None:
        handle = module.register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        return

    # module.compile() traces forward hooks into its graph; beside the compiled call the graph stays as it is
    def call(*args: Any, **kwargs: Any) -> Any:
        output = compiled(*args, **kwargs)
        hook(module, args, kwargs, output)
        return output

    module._compiled_call_impl = call
    try:
        yield
    finally:
        module._compiled_call_impl = compiled


@dataclass(frozen=True)
class Call:
    """A denoiser call.

    Attributes:
        arguments: by name, as the module got them.
        x: latents, [B, C, h, w].
        prediction: [B, C, h, w], in the model's own units.
        timestep: scalar or [B].
        text: encoder_hidden_states, [B, tokens, d].

    """

    module: nn.Module
    arguments: dict[str, Any]
    x: Tensor
    prediction: Tensor
    timestep: Tensor
    text: Tensor

    @classmethod
    def of(cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Call:
        """Read a call from what a forward hook sees.

        Raises:
            Unscored: if the module is not called like a text-conditional image denoiser.

        """
        names = inspect.signature(getattr(module, "_orig_mod", module).forward).parameters
        arguments = dict(zip(names, args, strict=False)) | kwargs
        sample = arguments.get("sample", arguments.get("hidden_states"))
        timestep, text = arguments.get("timestep"), arguments.get("encoder_hidden_states")
        if not isinstance(sample, Tensor) or not isinstance(text, Tensor) or timestep is None:
            raise Unscored(f"{type(module).__name__} is not called with a latent, a timestep and an encoded prompt")
        prediction = _image(_tensor(output), arguments)
        x = _image(sample, arguments)
        if prediction.shape[1] == 2 * x.shape[1]:
            prediction = prediction.chunk(2, 1)[0]  # the second half is the learned variance
        if len(prediction) != len(text):
            raise Unscored(f"the model call has {len(prediction)} images and {len(text)} prompts")
        # in-painting models see a mask and a picture in further channels
        return cls(module, arguments, x[:, : prediction.shape[1]], prediction, torch.as_tensor(timestep).detach(), text)

    def repeat(self, rows: slice, prompt: Encoded) -> Tensor:
        """Predict some rows again with other prompts: the one thing that costs rows. Follows torch's gradient mode.

        Args:
            rows: of this call, R of them.
            prompt: V * R rows, variant by variant.

        Returns:
            The prediction, [V * R, C, h, w].

        Raises:
            Unscored: if the call cannot be repeated without changing the picture or the meaning.

        """
        if getattr(self.module, "is_cache_enabled", False):
            raise Unscored("the model's cache is on, and one more row would change the picture; call disable_cache()")
        masks = [k for k, v in self.arguments.items() if k.startswith("encoder_") and "mask" in k and v is not None]
        if masks:
            raise Unscored(f"{masks[0]} of another prompt is not known; use the negative prompt as reference")
        batch = len(self.text)
        arguments = self.arguments
        if rows.indices(batch) != (0, batch, 1):
            arguments = {k: v if k.endswith("_ids") else _rows(v, rows, batch) for k, v in arguments.items()}
        count = len(range(*rows.indices(batch)))
        if len(prompt.text) != count:
            times = len(prompt.text) // count
            arguments = {k: v if k.endswith("_ids") else _tiled(v, times, count) for k, v in arguments.items()}
        arguments = arguments | {"encoder_hidden_states": prompt.text.to(self.text)}
        if prompt.pooled is not None:
            if "pooled_projections" in arguments:
                arguments["pooled_projections"] = prompt.pooled.to(arguments["pooled_projections"])
            elif "text_embeds" in (added := arguments.get("added_cond_kwargs") or {}):
                arguments["added_cond_kwargs"] = added | {"text_embeds": prompt.pooled.to(added["text_embeds"])}
        with own():
            return _image(_tensor(self.module(**arguments)), arguments)[:, : self.prediction.shape[1]]

    def moved(self, x: Tensor, timestep: Tensor) -> Tensor:
        """Predict other latents, all with the prompt and the arguments of the first row; follows the gradient mode.

        Args:
            x: [R, C, h, w].
            timestep: a scalar.

        Returns:
            The prediction, [R, C, h, w].

        """
        batch = len(self.text)
        first = {k: _tiled(_rows(v, slice(0, 1), batch), len(x), 1) for k, v in self.arguments.items()}
        with own():
            return _tensor(self.module(**first | {"sample": x, "timestep": timestep}))[:, : self.prediction.shape[1]]


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else getattr(output, "sample", output)


def _rows(value: Any, rows: slice, batch: int) -> Any:
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == batch else value
    if isinstance(value, dict):
        return {k: _rows(v, rows, batch) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_rows(v, rows, batch) for v in value)
    return value


def _tiled(value: Any, times: int, count: int) -> Any:
    if isinstance(value, Tensor):
        return value.repeat(times, *(1,) * (value.ndim - 1)) if value.ndim and len(value) == count else value
    if isinstance(value, dict):
        return {k: _tiled(v, times, count) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_tiled(v, times, count) for v in value)
    return value


def _image(latent: Tensor, arguments: dict[str, Any]) -> Tensor:
    """Return a latent as [B, C, h, w]; Flux packs 2 x 2 pixels into one token and says where each token lies."""
    if latent.ndim == 4:
        return latent
    places = arguments.get("img_ids")
    if latent.ndim == 3 and places is not None:
        height, width = (int(n) + 1 for n in places.reshape(-1, places.shape[-1])[:, 1:3].amax(0))
        if height * width == latent.shape[1]:
            return rearrange(latent, "b (h w) (c p q) -> b c (h p) (w q)", h=height, w=width, p=2, q=2)
    raise Unscored(f"latents of shape {list(latent.shape)} are not laid out as one image per row")
