"""One call of a unet or transformer: its input, its text, its prediction as an image, and how to repeat it.

It is repeated with the arguments as they came, by position or by name: hooks of others may read either.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...attributions.moment import Encoded
from .caches import ANSWERED, untouched
from .layouts import Layout
from .rows import Unscored, own

BESIDE = ("encoder_", "text_", "attention_mask")  # how what a model reads beside a prompt's text begins


@dataclass(frozen=True)
class Call:
    """A denoiser call.

    Attributes:
        arguments: by name, as the module got them.
        x: latents, [B, C, h, w], of frames [B, C, T, h, w].
        prediction: of the same shape, in the model's own units.
        timestep: scalar or [B].
        text: encoder_hidden_states, [B, tokens, d].
        positional: number of the arguments that came by position.
        layout: of latents in the module's own tensors.

    """

    module: nn.Module
    arguments: dict[str, Any]
    x: Tensor
    prediction: Tensor
    timestep: Tensor
    text: Tensor
    positional: int = 0
    layout: Layout = Layout()

    @classmethod
    def of(
        cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, variance: bool = False
    ) -> Call:
        """Read a call from what a forward hook sees; before the call the output is None and x its place holder.

        Args:
            module: the denoiser.
            args: of the call.
            kwargs: of the call.
            output: of the call.
            variance: whether half of what the model predicts is its variance, see ``pipes.learns_variance``.

        Raises:
            Unscored: if the module is not called like a text-conditional image denoiser.

        """
        arguments = by_name(module, args, kwargs)
        sample = arguments.get("sample", arguments.get("hidden_states"))
        timestep, text = arguments.get("timestep"), arguments.get("encoder_hidden_states")
        if not isinstance(sample, Tensor) or not isinstance(text, Tensor) or timestep is None:
            raise Unscored(f"{type(module).__name__} is not called with a latent, a timestep and an encoded prompt")
        layout = Layout.of(sample, arguments, getattr(module, "config", {}).get("in_channels"))
        if layout is None:
            raise Unscored(f"latents of shape {list(sample.shape)} are not laid out in a way that MemGuard knows")
        x = layout.latents(sample)
        prediction = _like(x, module) if output is None else layout.latents(tensor_of(output))
        if (variance and output is not None) or prediction.shape[1] == 2 * x.shape[1]:
            prediction = prediction.chunk(2, 1)[0]  # the second half is the learned variance
        if len(prediction) != len(text):
            raise Unscored(f"the model call has {len(prediction)} images and {len(text)} prompts")
        # in-painting models see a mask and a picture in further channels
        x = x[:, : prediction.shape[1]]
        return cls(module, arguments, x, prediction, torch.as_tensor(timestep).detach(), text, len(args), layout)

    def part(self, rows: slice) -> Call:
        """Return the call as if it had been made with some of its rows only."""
        batch = len(self.text)
        if rows.indices(batch) == (0, batch, 1):
            return self
        arguments = {k: v if k.endswith("_ids") else _rows(v, rows, batch) for k, v in self.arguments.items()}
        x, prediction, timestep = (_rows(each, rows, batch) for each in (self.x, self.prediction, self.timestep))
        text = self.text[rows]
        return replace(self, arguments=arguments, x=x, prediction=prediction, timestep=timestep, text=text)

    def repeat(self, rows: slice, prompt: Encoded, x: Tensor | None = None) -> Tensor:
        """Predict some rows again with other prompts: the one thing that costs rows. Follows torch's gradient mode.

        Args:
            rows: of this call, R of them.
            prompt: V * R rows, variant by variant.
            x: other latents, [V * R, C, h, w]; None is the call's own.

        Returns:
            The prediction, [V * R, C, h, w].

        Raises:
            Unscored: if the call cannot be repeated without changing the picture or the meaning.

        """
        self.takes_another_prompt()
        batch = len(self.text)
        arguments = self.arguments
        if rows.indices(batch) != (0, batch, 1):
            arguments = {k: v if k.endswith("_ids") else _rows(v, rows, batch) for k, v in arguments.items()}
        count = len(range(*rows.indices(batch)))
        if len(prompt.text) != count:
            times = len(prompt.text) // count
            arguments = {k: v if k.endswith("_ids") else _tiled(v, times, count) for k, v in arguments.items()}
        arguments = with_latents(with_prompt(arguments, prompt), x, self.layout)
        made = self.layout.latents(tensor_of(self.made(arguments)))[:, : self.prediction.shape[1]]
        if torch.equal(made, self.prediction[rows]) and not self._asks_alike(rows, prompt, x):
            raise Unscored(ANSWERED)
        return made

    def takes_another_prompt(self, remedy: str = "") -> None:
        """Raise Unscored, with a remedy, if more than a text goes with a prompt, such as the mask of its tokens."""
        given = [k for k, v in self.arguments.items() if k != "encoder_hidden_states" and v is not None]
        more = [k for k in given if k.startswith(BESIDE)]
        if more:
            raise Unscored(f"{more[0]} of another prompt is not known{remedy}")

    def made(self, arguments: dict[str, Any]) -> Any:
        """Call the model as it was called, with other arguments of the same names; return its output.

        Raises:
            Unscored: if the model keeps something between its calls, so that it would answer from there.

        """
        args, kwargs = as_given(self.module, arguments, self.positional)
        with own(self.module), untouched(self.module):
            return self.module(*args, **kwargs)

    def _asks_alike(self, rows: slice, prompt: Encoded, x: Tensor | None) -> bool:
        """Whether other inputs are those of the call after all."""
        same = len(prompt.text) == len(self.text[rows]) and torch.equal(prompt.text.to(self.text), self.text[rows])
        return same and (x is None or torch.equal(x.to(self.x), self.x[rows]))

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
        return tensor_of(self.made(first | {"sample": x, "timestep": timestep}))[:, : self.prediction.shape[1]]


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a denoiser call by name."""
    return dict(zip(_names(module), args, strict=False)) | kwargs


def as_given(module: nn.Module, arguments: dict[str, Any], positional: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return args and kwargs of a denoiser call, the first ones by position."""
    names = _names(module)[:positional]
    return tuple(arguments[n] for n in names), {n: value for n, value in arguments.items() if n not in names}


def _names(module: nn.Module) -> list[str]:
    """Return the names of a denoiser's arguments, in order; a wrapper of its forward may not tell them."""
    plain = getattr(module, "_orig_mod", module)
    classes = [vars(cls)["forward"] for cls in type(plain).__mro__ if "forward" in vars(cls)]
    for forward, start in ((plain.forward, 0), *((each, 1) for each in classes)):
        known = inspect.signature(forward).parameters
        if all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in known.values()):
            return list(known)[start:]
    return []


def with_prompt(arguments: dict[str, Any], prompt: Encoded) -> dict[str, Any]:
    """Return the arguments of a call on another prompt, of as many rows."""
    changed = arguments | {"encoder_hidden_states": prompt.text.to(arguments["encoder_hidden_states"])}
    if prompt.pooled is not None:
        name, table = _pooled(arguments)
        if name == "pooled_projections":
            changed[name] = prompt.pooled.to(table)
        elif name:
            changed["added_cond_kwargs"] = arguments["added_cond_kwargs"] | {name: prompt.pooled.to(table)}
    return changed


def prompt_of(arguments: dict[str, Any]) -> Encoded:
    """Return what a call is conditioned on, all rows."""
    return Encoded(arguments["encoder_hidden_states"], _pooled(arguments)[1])


def with_latents(arguments: dict[str, Any], x: Tensor | None, layout: Layout) -> dict[str, Any]:
    """Return the arguments of a call on other latents [B, C, h, w]; further channels (in-painting) stay."""
    if x is None:
        return arguments
    name = "sample" if "sample" in arguments else "hidden_states"
    old = layout.latents(arguments[name])
    return arguments | {name: layout.back(torch.cat([x.to(old), old[:, x.shape[1] :]], 1))}


def _pooled(arguments: dict[str, Any]) -> tuple[str, Tensor | None]:
    if arguments.get("pooled_projections") is not None:
        return "pooled_projections", arguments["pooled_projections"]
    table = (arguments.get("added_cond_kwargs") or {}).get("text_embeds")
    return ("", None) if table is None else ("text_embeds", table)


def _like(x: Tensor, module: nn.Module) -> Tensor:
    """Return as many channels of the latents as the model predicts."""
    predicted = getattr(module, "config", {}).get("out_channels")
    return x if x.shape[1] <= (predicted or x.shape[1]) else x[:, :predicted]


def tensor_of(output: Any) -> Tensor:
    """Return the prediction of a denoiser's output, as the model gives it."""
    return output[0] if isinstance(output, tuple | list) else getattr(output, "sample", output)


def output_of(output: Any, prediction: Tensor) -> Any:
    """Return a denoiser's output with another prediction, as the model gives it."""
    if isinstance(output, tuple | list):
        return type(output)([prediction, *output[1:]])
    return prediction if isinstance(output, Tensor) else type(output)(sample=prediction)


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
