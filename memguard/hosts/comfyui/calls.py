"""A model call that can be made again with another prompt in place of one of its conditionings.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from comfy.utils import repeat_to_batch_size
from torch import Tensor

from ...aside import aside
from ...attributions.moment import Encoded
from ...layout import Layout
from ...troubles import Told
from ..inference import normal

TEXT, POOLED = "c_crossattn", "y"  # how ComfyUI's models call what they are conditioned on
LEADING = "memguard_leading"  # of a processed conditioning: columns before those of its prompt
COMPILED = "torch.compile"  # key of the wrapper that puts a compiled network in place
SHAPES = "latent_shapes"  # of latents that are packed into one: a video and its sound
CACHES = ("easycache", "lazycache")  # of wrappers that answer from a cache of earlier calls
SPLIT = "multigpu_clones"  # of the copies that calls are split over, by their devices
Cond = dict[str, Any]


class Unknown(Told):
    """Why a prompt cannot be exchanged, in words for the user."""


class Call:
    """One model call: its noisy latents, its noise level, and the way to make it again.

    Args:
        guider: of the run; its model is loaded.
        x: noisy latents, [B, C, ...].
        sigma: noise level, [B].
        options: model_options of the call.

    """

    def __init__(self, guider: Any, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> None:
        self.guider, self.x, self.sigma, self.options = guider, x, sigma, options

    def normal(self) -> Call:
        """Return the same call of tensors that autograd may save."""
        x = self.x if self.x.requires_grad else normal(self.x)
        return Call(self.guider, x, normal(self.sigma), self.options)

    def predict(self, conds: list[list[Cond]]) -> list[Tensor]:
        """Return the prediction under each role's conditionings, in units of epsilon (velocity for flow models)."""
        with aside(self.x):
            made = comfy.samplers.calc_cond_batch(self.guider.inner_model, conds, self.x, self.sigma, self.options)
        return [self.noise(denoised) for denoised in made]

    def noise(self, denoised: Tensor) -> Tensor:
        """Return a denoised prediction of the call in units of epsilon (velocity for flow models), float32."""
        sigma = self.sigma.float().reshape(-1, *[1] * (self.x.ndim - 1))
        return (self.x.float() - denoised.float()) / sigma

    def active(self, cond: Cond) -> bool:
        """Whether a conditioning acts at this noise level."""
        return comfy.samplers.get_area_and_mult(cond, self.x, self.sigma) is not None

    def encoded(self, cond: Cond) -> Encoded:
        """Return what a processed conditioning gives to the model, one row per image.

        Raises:
            Unknown: for a model that is conditioned in a way that MemGuard does not know.

        """
        rows = len(self.x)
        text = repeat_to_batch_size(text_of(cond), rows)
        width = _pooled_width(cond)
        if width == 0:
            return Encoded(text)
        return Encoded(text, repeat_to_batch_size(cond["model_conds"][POOLED].cond, rows)[:, :width])

    def again(self, conds: Sequence[Cond], index: int) -> Callable[[Encoded], Tensor]:
        """Return the function from other prompts to predictions.

        Args:
            conds: of one role.
            index: of the one whose prompt is exchanged; all else stays, also the others.

        """

        def predict(prompt: Encoded) -> Tensor:
            images = len(self.x)
            variants = []
            for start in range(0, len(prompt.text), images):
                part = slice(start, start + images)
                pooled = None if prompt.pooled is None else prompt.pooled[part]
                exchanged = with_prompt(conds[index], prompt.text[part], pooled)
                variants.append([*conds[:index], exchanged, *conds[index + 1 :]])
            try:
                return torch.cat(self.predict(variants))
            except ValueError:  # a network that takes one row only (MiniMax H3)
                if len(variants) == 1:
                    raise
                return torch.cat([self.predict([each])[0] for each in variants])

        return predict


def layout_of(conds: Sequence[Cond]) -> Layout:
    """Return how latents lie in a run's tensors, by what the network itself gets to unpack them."""
    found = (getattr(cond["model_conds"].get(SHAPES), "cond", None) for cond in conds)
    shapes = next((each for each in found if each is not None and len(each) > 1), ())
    return Layout(streams=tuple(tuple(shape[1:]) for shape in shapes))


def text_of(cond: Cond) -> Tensor:
    """Return the encoded prompt of a processed conditioning, [1 or B, tokens, d].

    Raises:
        Unknown: where it is not in the place that MemGuard knows.

    """
    found = cond["model_conds"].get(TEXT)
    text = getattr(found, "cond", None)
    if not isinstance(text, Tensor) or text.ndim != 3:
        raise Unknown("MemGuard does not know where this model takes its prompt from")
    return text


def leading(cond: Cond) -> int:
    """Return how many columns a model puts before those of the prompt: Flux.2 fills short prompts up on their left."""
    if LEADING in cond:
        return int(cond[LEADING])
    text, own = text_of(cond), cond.get("cross_attn")
    if own is None:
        return 0
    more = text.shape[1] - own.shape[1]
    if more <= 0 or text.shape[-1] != own.shape[-1]:
        return 0
    return more if torch.equal(text[:1, more:].detach(), own[:1].detach().to(text)) else 0


def trailing(cond: Cond) -> int:
    """Return how many columns a model puts behind those of the prompt: Stable Audio has two that say how long it is."""
    text, own = text_of(cond), cond.get("cross_attn")
    if own is None or text.shape[-1] != own.shape[-1]:
        return 0
    return max(0, text.shape[1] - own.shape[1] - leading(cond))


def as_encoded(cond: Cond) -> bool:
    """Whether a model gets the encoded prompt itself; some hand on what a network of their own makes of it (LTX-2)."""
    own = cond["cross_attn"]
    text = text_of(cond)[:1, leading(cond) :][:, : own.shape[1]]
    return text.shape == own[:1].shape and torch.equal(text.detach(), own[:1].detach().to(text))


def pooled_of(cond: Cond) -> Tensor | None:
    """Return what a processed conditioning gives to the model beside its encoded prompt; None where nothing."""
    found = getattr(cond["model_conds"].get(POOLED), "cond", None)
    return found if isinstance(found, Tensor) else None


def eager(options: dict[str, Any]) -> dict[str, Any]:
    """Return model_options of its own, for a call that goes through the network as it is and not as compiled."""
    transformer = dict(options.get("transformer_options", {}))
    wrappers = {kind: dict(by_key) for kind, by_key in transformer.get("wrappers", {}).items()}
    wrappers.setdefault(WrappersMP.APPLY_MODEL, {}).pop(COMPILED, None)
    return {**options, "transformer_options": {**transformer, "wrappers": wrappers}}


def alone(options: dict[str, Any]) -> dict[str, Any]:
    """Return model_options for an evaluation of ours: as it is, on one device, neither from a cache nor kept in one.

    Where calls are split over devices the host makes them in threads of its own, which take no gradient.
    """
    found = eager(options)
    found.pop(SPLIT, None)
    for by_key in found["transformer_options"]["wrappers"].values():
        for key in CACHES:
            by_key.pop(key, None)
    return found


def is_compiled(options: dict[str, Any]) -> bool:
    """Whether a call goes through a compiled network, so that reading it needs a call of its own."""
    wrappers = options.get("transformer_options", {}).get("wrappers", {})
    return bool(wrappers.get(WrappersMP.APPLY_MODEL, {}).get(COMPILED))


def rows_of(conds: Sequence[Cond], x: Tensor, sigma: Tensor) -> int:
    """Return how many rows of the network a role's conditionings cost."""
    return len(x) * sum(comfy.samplers.get_area_and_mult(cond, x, sigma) is not None for cond in conds)


def with_prompt(cond: Cond, text: Tensor, pooled: Tensor | None) -> Cond:
    """Return a processed conditioning with another encoded prompt, whose columns stand where the first one's stood."""
    cond = {**cond, LEADING: leading(cond)}
    parts = dict(cond["model_conds"])
    parts[TEXT] = parts[TEXT]._copy_with(text.to(parts[TEXT].cond))
    width = _pooled_width(cond)
    if pooled is None or pooled.shape[-1] != width:
        return {**cond, "model_conds": parts}
    y = repeat_to_batch_size(parts[POOLED].cond, len(pooled))
    rest = y[:, width:]  # SDXL's sizes follow the pooled vector
    parts[POOLED] = parts[POOLED]._copy_with(torch.cat([pooled.to(y), rest], 1))
    return {**cond, "pooled_output": pooled, "model_conds": parts}


def _pooled_width(cond: Cond) -> int:
    """Return how much of a model's vector beside the prompt is the prompt's own; 0 where it is of other things."""
    vector, pooled = pooled_of(cond), cond.get("pooled_output")
    if vector is None or pooled is None or vector.ndim != 2:
        return 0
    width = int(pooled.shape[-1])
    own = vector[:1, :width].detach()
    # an unCLIP picture, a task (Lotus), the motion of a video
    return width if torch.equal(own, pooled[:1].detach().to(own)) else 0


def normal_cond(cond: Cond) -> Cond:
    """Return a processed conditioning whose tensors autograd may save."""
    parts = {
        name: part._copy_with(normal(part.cond)) if isinstance(part.cond, Tensor) else part
        for name, part in cond["model_conds"].items()
    }
    return {**cond, "model_conds": parts}
