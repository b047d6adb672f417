"""One model call of Forge or Forge Neo: its predictions, its conditionings, and the way to make it again.

May import: the WebUI's backend, memguard.attributions, memguard.mitigations, memguard.hosts.inference, torch.
"""

from __future__ import annotations

from typing import Any

import torch
from backend.sampling.sampling_function import calc_cond_uncond_batch
from torch import Tensor

from ..attributions.moment import Encoded
from ..mitigations.base import Treatment
from ..mitigations.effect import Effect
from .inference import normal

FLOW = "const"  # what the hosts call it; their classes differ from version to version, so none is asked for
NUMBERED = "epsilon", "v_prediction"


class Call:
    """One model call, as the function after the guidance shows it, and the guidance scale that it was made with."""

    def __init__(self, p: Any, args: dict[str, Any], scale: float) -> None:
        self.p, self.scale = p, scale
        self.model, self.options = args["model"], args["model_options"]
        self.x, self.sigma = args["input"], args["sigma"]
        self.cond, self.uncond = args["cond"], args["uncond"]
        self.denoised, self.with_prompt, self.without = (
            args[name] for name in ("denoised", "cond_denoised", "uncond_denoised")
        )
        self.level = float(self.sigma[0])
        predictor = self.model.predictor
        self.timestep = float(predictor.timestep(self.sigma[:1])[0]) if numbered(predictor) else None

    @property
    def flow(self) -> bool:
        """Whether the model predicts a velocity of a rectified flow: its prediction is then noise minus picture."""
        return bool(self.model.predictor.prediction_type == FLOW)

    @property
    def strength(self) -> float:
        """The sum of the weights of AND sub-prompts, which scales the guidance."""
        return float(sum(item.get("strength", 1) for item in self.cond))

    def noise(self, denoised: Tensor, x: Tensor | None = None) -> Tensor:
        """Return a prediction in units of epsilon (velocity for flow models)."""
        return ((self.x if x is None else x).float() - denoised.float()) / self.level

    @property
    def gap(self) -> Tensor:
        """The noise gap of each image, [B, C, h, w], in units of epsilon; zero where the host predicted one only."""
        gap = (self.without.float() - self.with_prompt.float()) / self.level
        return gap * self.without.any()  # what it leaves out is zeros

    def back(self, noise: Tensor) -> Tensor:
        """Return the denoised latents of a prediction."""
        return self.x.float() - noise * self.level

    def predict(self, conds: list[Any], x: Tensor) -> Tensor:
        """Predict other conditionings, in units of epsilon."""
        if torch.is_grad_enabled():
            out = calc_cond_uncond_batch(self.model, conds, None, normal_if(x), normal(self.sigma), self.options)[0]
        else:
            with torch.inference_mode():
                out = calc_cond_uncond_batch(self.model, conds, None, x, self.sigma, self.options)[0]
        return self.noise(out, x)

    def guided(self, cond: Tensor, uncond: Tensor) -> Tensor:
        """Return the call's result with other denoised predictions; what other functions added to it stays."""
        scale = self.scale * self.strength
        own = self.without + (self.with_prompt - self.without) * scale
        return (uncond + (cond - uncond) * scale + (self.denoised - own)).to(self.denoised)


def numbered(predictor: Any) -> bool:
    """Whether a model's noise levels are those of numbered steps, which ``timestep`` names."""
    return predictor.prediction_type in NUMBERED and hasattr(predictor, "alphas_cumprod")


def normal_if(x: Tensor) -> Tensor:
    """Return a tensor that autograd may save; one that is part of a graph as it is."""
    return x if x.requires_grad or not x.is_inference() else normal(x)


def text(conds: list[Any]) -> Encoded:
    """Return what a role's only conditioning gives to the model, one row for each image."""
    given = conds[0]["model_conds"]
    pooled = given.get("y")
    return Encoded(normal(given["c_crossattn"].cond), None if pooled is None else normal(pooled.cond))


def columns(conds: list[Any]) -> int:
    """Return the number of a prompt's columns; 0 for a model without text of its own."""
    given = conds[0]["model_conds"].get("c_crossattn")
    return 0 if given is None else int(given.cond.shape[1])


def exchanged(cond: dict[str, Any], prompt: Encoded) -> dict[str, Any]:
    """Return a conditioning with another prompt."""
    given = dict(cond["model_conds"])
    own = given["c_crossattn"]
    given["c_crossattn"] = type(own)(prompt.text.to(own.cond))
    if "y" in given:
        given["y"] = type(given["y"])(
            normal(given["y"].cond) if prompt.pooled is None else prompt.pooled.to(given["y"].cond)
        )
    return {**cond, "model_conds": given, "cross_attn": given["c_crossattn"].cond}


def treated(cond: list[Any], uncond: Any, treatment: Treatment | None, effect: Effect | None) -> tuple[list[Any], Any]:
    """Return the conditionings of a call with a treatment's texts; ``effect`` is told of what differs."""
    if treatment is None or len(cond) != 1:
        return cond, uncond
    found: list[Any] = []
    for part, own, other in (("prompt", cond, treatment.prompt), ("reference", uncond, treatment.reference)):
        made = own if other is None or own is None else [exchanged(own[0], other)]
        if made is not own and effect is not None:
            before, after = text(own or []), text(made or [])
            effect.changed(part, before.text, after.text)
            if before.pooled is not None and after.pooled is not None:
                effect.changed(part, before.pooled, after.pooled)
        found.append(made)
    return found[0], found[1]
