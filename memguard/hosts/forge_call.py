"""One model call of Forge or Forge Neo (memguard.host.Call): predictions, conditionings, how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from backend.sampling.sampling_function import calc_cond_uncond_batch
from modules import shared
from torch import Tensor

from ..attributions.moment import Encoded
from ..host import Level, Role
from ..layout import Layout
from .inference import normal
from .webui import model
from .webui.session import SKIPPED

FLOW = "const"  # what the hosts call it; their classes differ from version to version, so none is asked for
NUMBERED = "epsilon", "v_prediction"
GUIDANCE_OFF = "cfg is 1, so the WebUI predicts nothing without the prompt"


class Conditionings:
    """What both prompts of a call give to the model.

    Attributes:
        cond: of the prompt, one for each of its AND sub-prompts.
        uncond: of the negative prompt; None without guidance.

    """

    def __init__(self, cond: list[Any], uncond: list[Any] | None) -> None:
        self.cond, self.uncond = cond, uncond
        self._given: dict[Role, Encoded] | None = None

    @property
    def given(self) -> Mapping[Role, Encoded]:
        """What the network is conditioned on, without prompts that are joined of several."""
        if self._given is None:
            known: dict[Role, list[Any] | None] = {"prompt": self.cond, "negative": self.uncond}
            alone = len(self.cond) == 1
            self._given = {
                role: text(each)
                for role, each in known.items()
                if each and columns(each) and (alone or role != "prompt")
            }
        return self._given

    def exchange(self, given: Mapping[Role, Encoded]) -> None:
        """Take other texts."""
        own = self.given
        if given.get("prompt") is not own.get("prompt"):
            self.cond = [exchanged(self.cond[0], given["prompt"])]
        if self.uncond and given.get("negative") is not own.get("negative"):
            self.uncond = [exchanged(self.uncond[0], given["negative"])]
        self._given = dict(given)


class Call(Conditionings):
    """One model call, as the function after the guidance shows it.

    Args:
        p: the host's StableDiffusionProcessing.
        args: of the function.
        scale: guidance scale that the call was made with.
        restarts: whether the sampler can be started once more.

    """

    coverage = None
    layout = Layout()

    def __init__(self, p: Any, args: dict[str, Any], scale: float, restarts: bool = False) -> None:
        super().__init__(args["cond"], args["uncond"])
        self.p, self.scale, self.restarts = p, scale, restarts
        self.model, self.options = args["model"], args["model_options"]
        self.x, self.sigma = args["input"], args["sigma"]
        self.denoised, self.with_prompt, self.without = (
            args[name] for name in ("denoised", "cond_denoised", "uncond_denoised")
        )
        self._denoised = self.denoised
        predictor = self.model.predictor
        self.level = Level(
            float(self.sigma[0]),
            float(predictor.sigma_max),
            float(predictor.timestep(self.sigma[:1])[0]) if numbered(predictor) else None,
            "flow_velocity" if self.flow else "epsilon",
            None if model.from_picture(p) else True,
        )

    @property
    def flow(self) -> bool:
        """Whether the model predicts a velocity of a rectified flow: its prediction is then noise minus picture."""
        return bool(self.model.predictor.prediction_type == FLOW)

    @property
    def columns(self) -> int:
        """The number of the prompt's columns."""
        return columns(self.cond)

    @property
    def noise(self) -> Tensor | None:
        """Noise of unit variance that the run starts from; None where it cannot start from other noise."""
        pure = not model.from_picture(self.p) and self.restarts and self.level.timestep is not None
        return normal(self.x).float() / self._unit if pure else None

    @property
    def predicted(self) -> Mapping[Role, Tensor]:
        """What was predicted, of AND sub-prompts their mean by weight; see memguard.host.Call."""
        found: dict[Role, Tensor] = {"prompt": self._noise(self.with_prompt, self.x)}
        if self.uncond is not None and bool(self.without.any()):  # what the host leaves out is zeros
            found["negative"] = self._noise(self.without, self.x)
        return found

    @property
    def why(self) -> str:
        """Why the prediction without the prompt is missing."""
        return GUIDANCE_OFF if self.uncond is None else SKIPPED

    def gap(self) -> Tensor | None:
        """Return the noise gap of each image, [B, C, h, w], in units of epsilon; zero where the host left one out."""
        if self.uncond is None:
            return None
        gap = (self.without.float() - self.with_prompt.float()) / self.level.sigma
        return gap * self.without.any()

    def latents(self, noise: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the latents of a run that starts from other noise; see memguard.host.Call."""
        moved = (noise * self._unit).to(self.x)
        return moved if images is None else normal(self.x).index_copy(0, images, moved[images])

    def predict(self, role: Role, prompt: Encoded, x: Tensor) -> Tensor:
        """Predict with another prompt in the place of a role's, in units of epsilon."""
        own = self.given.get(role)
        conds = self.cond if role == "prompt" else self.uncond or self.cond
        return self.asked(conds if prompt is own else [exchanged(conds[0], prompt)], x)

    def asked(self, conds: list[Any], x: Tensor) -> Tensor:
        """Predict other conditionings, in units of epsilon."""
        if torch.is_grad_enabled():
            out = calc_cond_uncond_batch(self.model, conds, None, normal_if(x), normal(self.sigma), self.options)[0]
        else:
            with torch.inference_mode():
                out = calc_cond_uncond_batch(self.model, conds, None, x, self.sigma, self.options)[0]
        return self._noise(out, x)

    def put(self, predicted: Mapping[Role, Tensor], images: Tensor | None = None) -> None:
        """Take other predictions into the call's result; what other functions added to it stays."""
        own = {"prompt": self.with_prompt, "negative": self.without}
        cond, uncond = (
            (self.x.float() - predicted[role] * self.level.sigma).to(self.x) if role in predicted else own[role]
            for role in ("prompt", "negative")
        )
        scale = self.scale * float(sum(item.get("strength", 1) for item in self.cond))  # of AND sub-prompts
        before = self.without + (self.with_prompt - self.without) * scale
        found = (uncond + (cond - uncond) * scale + (self.denoised - before)).to(self.denoised)
        self.denoised = found if images is None else self.denoised.index_copy(0, images, found[images])
        self.with_prompt, self.without = cond, uncond

    def undo(self) -> None:
        """Take back what ``put`` has changed."""
        self.denoised = self._denoised

    def _noise(self, denoised: Tensor, x: Tensor) -> Tensor:
        """Return a prediction in units of epsilon (velocity for flow models)."""
        return (x.float() - denoised.float()) / self.level.sigma

    @property
    def _unit(self) -> float:
        """What noise of unit variance is multiplied by in the sampler's latents."""
        one = torch.ones(1, 1, 1, 1, device=self.x.device)
        full = bool(shared.opts.sgm_noise_multiplier)  # the host's setting, off by default: as at the largest level
        scaled = self.model.predictor.noise_scaling(self.sigma[:1].reshape(1, 1, 1, 1), one, 0 * one, full)
        return float(scaled)


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
