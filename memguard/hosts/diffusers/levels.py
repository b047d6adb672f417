"""How noisy a model call is, and its prediction in units of epsilon, whatever the scheduler and the training target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...records import Parameterization
from ...steps import Steps
from .rows import Unscored


@dataclass(frozen=True)
class Level:
    """The noise level of one model call; the fields are those of StepEvidence.

    ``target`` is what the model was trained to predict: "epsilon", "v_prediction", "sample" or "flow".
    """

    sigma: float
    sigma_max: float
    timestep: float
    target: str
    full_noise: bool

    @property
    def parameterization(self) -> Parameterization:
        """Return the unit of ``convert``'s result."""
        return "flow_velocity" if self.target == "flow" else "epsilon"

    def convert(self, prediction: Tensor, x: Tensor) -> Tensor:
        """Return the prediction in units of epsilon (of the velocity for flow models), a float32 copy.

        Args:
            prediction: the model's output, [B, C, h, w].
            x: the model's input, [B, C, h, w], of variance one (diffusers' ``scale_model_input`` sees to it).

        """
        out = prediction.to(torch.float32, copy=True)
        alpha, beta = 1 / math.sqrt(1 + self.sigma**2), self.sigma / math.sqrt(1 + self.sigma**2)
        if self.target == "v_prediction":  # v = alpha eps - beta x0 and x = alpha x0 + beta eps
            return out.mul_(alpha).add_(x.float(), alpha=beta)
        if self.target == "sample":
            return out.mul_(-alpha).add_(x.float()).div_(beta)
        return out


def gain(here: Level) -> float:
    """Return what a difference of two predictions is multiplied by to be in units of epsilon."""
    two = torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
    low, high = here.convert(two, torch.zeros_like(two)).flatten().tolist()
    return float(high - low)


def level(scheduler: Any, timestep: Tensor) -> Level:
    """Return the noise level of a model call.

    Args:
        scheduler: the pipeline's scheduler, its timesteps set.
        timestep: what the denoiser was given, a scalar or one per row; Flux divides it by 1000.

    Raises:
        Unscored: for schedules that are not known.

    """
    name = type(scheduler).__name__
    values = timestep.detach().flatten().double().cpu()
    if not bool((values == values[0]).all()):
        raise Unscored("the rows of one model call have different timesteps")
    schedule = scheduler.timesteps.detach().double().cpu()
    found = [each for times in (1, 1000) if (each := _nearest(schedule, times * float(values[0]))) is not None]
    if not found:
        raise Unscored(f"the model's timestep {float(values[0]):g} is not in the schedule of {name}")
    index = found[0] if _next(scheduler) not in found else _next(scheduler)  # 1 may be the last one, or 1000
    t = float(schedule[index])
    full_noise = t == float(schedule.max())
    config = scheduler.config
    target = config.get("prediction_type", "epsilon")
    if "Flow" in name or config.get("use_flow_sigmas") or target == "flow_prediction":
        sigma = float(scheduler.sigmas[index])
        if config.get("invert_sigmas"):  # such schedules count the share of the picture, from 0 to 1
            sigma, full_noise = 1 - sigma, t == float(schedule.min())
        return Level(sigma, 1.0, t, "flow", full_noise)
    if hasattr(scheduler, "_alpha_cumprod"):  # Wuerstchen's timesteps are shares of a cosine schedule
        at = [float(scheduler._alpha_cumprod(torch.tensor(each), torch.device("cpu"))) for each in (t, 1.0)]
        sigma, highest = (math.sqrt(1 / alpha - 1) for alpha in at)
        return Level(sigma, highest, 1000 * t, "epsilon", full_noise)
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None or target not in ("epsilon", "v_prediction", "sample"):
        raise Unscored(f"the noise schedule of {name} (prediction type {target}) is not known to memguard")
    with np.errstate(divide="ignore"):
        logs = 0.5 * np.log(1 / alphas.detach().double().cpu().numpy() - 1)
    sigma = math.exp(np.interp(t, np.arange(len(logs)), logs))
    if not math.isfinite(sigma):
        raise Unscored("alpha_bar is 0 at this step (zero terminal SNR), where predictions cannot be told in epsilon")
    return Level(sigma, float(np.exp(logs[np.isfinite(logs)].max())), t, target, full_noise)


def steps_of(scheduler: Any, calls: int) -> Steps:
    """Return the counter of a run's sampling steps, by timestep.

    Args:
        scheduler: the pipeline's scheduler, its timesteps set.
        calls: of the model that the pipeline makes, the last of the schedule.

    """
    levels = scheduler.timesteps[-calls:].tolist()
    between = 0
    if getattr(scheduler, "order", 1) > 1 and all(a != b for a, b in pairwise(levels)):
        between = len(levels) // 2  # KDPM2 and SDE schedulers ask half-way to each next step
    begins = getattr(scheduler, "prk_timesteps", None)
    if begins is not None and len(begins):  # PNDM's first steps by Runge and Kutta, of four calls each
        between = scheduler.pndm_order - 1
    return Steps.of_calls(levels, between)


def _next(scheduler: Any) -> int:
    """Return the index of the timestep that is next in the run."""
    taken = getattr(scheduler, "step_index", None)
    return int((getattr(scheduler, "begin_index", None) or 0) if taken is None else taken)


def _nearest(schedule: Tensor, t: float) -> int | None:
    """Return the first index of the timestep that is ``t`` up to half precision's rounding, or None."""
    distance = (schedule - t).abs()
    index = int(distance.argmin())
    return index if float(distance[index]) <= 0.005 * abs(t) + 1e-3 else None
