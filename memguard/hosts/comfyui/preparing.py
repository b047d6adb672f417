"""Mitigations that are worked out before any sampling: an optimised prompt, and other starting noise.

The work is done at the first model call of a sampler of our own, so that loading, LoRA, areas and ControlNet are
ComfyUI's. It starts where the workflow's sampler does, so that the sampler's own score is the one that was reached.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor

from ...aside import aside
from ...attributions.moment import Encoded
from ...mitigations.base import Start, Treatment, blend
from ...mitigations.noise_adjustment import NoiseAdjustment
from ...mitigations.prompt_optimization import PromptOptimization, optimize
from ...sampling import Unwatched
from ...troubles import in_words
from . import roles
from .attempts import Sampling
from .began import Began
from .model import family, name_of
from .preflight import GUIDANCE, FirstCall
from .prompts import Prompts
from .steering import Steering, apart
from .watcher import unwatched

Work = Callable[[Start], Any]


class _AtFirstCall(FirstCall):
    """Works at the first model call of a sampler and ends there."""

    def __init__(self, work: Work, rounds: int) -> None:
        self.work, self.rounds = work, rounds
        self._began: Began | None = None

    def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor, *rest: Any) -> Any:
        """Return the noisy latents after the work; the signature is that of ComfyUI's samplers."""
        latent, mask = rest[0], rest[1]
        self._began = Began(self, sigmas, noise, latent, mask)
        return super().sample(model_wrap, sigmas, extra_args, callback, noise, latent, mask)

    def call(self, model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> None:
        """Work at the first model call."""
        # what fails here fails the node, in words: there is no picture to be kept
        run = Unwatched(model=name_of(patcher := model.inner_model.model_patcher), family=family(patcher))
        steering = Steering(model.inner_model, Prompts(None, list), run, nullcontext)
        steering.began = self._began
        bar = comfy.utils.ProgressBar(self.rounds)

        def cancelled() -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update(1)

        with apart():
            call = steering.evaluation(x, sigma, extra_args["model_options"], roles.NEGATIVE)
            began = Sampling(run, call, steering.prompts).start(call)
            self.work(replace(began, cancelled=cancelled))


@dataclass(frozen=True)
class FixedNoise:
    """A NOISE of ComfyUI that was worked out before; ``seed`` is the one that it comes from."""

    seed: int
    noise: Tensor

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        """Return the noise for a latent.

        Raises:
            ValueError: for a latent of another size.

        """
        wanted = tuple(latent["samples"].shape)
        if wanted != tuple(self.noise.shape):
            raise ValueError(
                f"latent is {wanted} and the adjusted noise {tuple(self.noise.shape)}; connect the latent that MemGuard"
                " Adjust Noise got"
            )
        return self.noise.clone()


def optimized(
    settings: PromptOptimization,
    patcher: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    seed: int,
    sigmas: Tensor | None = None,
) -> tuple[Any, list[float]]:
    """Return a prompt, optimised for the starting noise of a seed, and the losses; the last is the prompt's own.

    Args:
        settings: of the optimisation.
        patcher: MODEL.
        positive: CONDITIONING of one part; it stays as it is.
        negative: CONDITIONING to compare with.
        latent: LATENT that the sampler gets; all its images count.
        seed: the sampler's.
        sigmas: of the sampler; None starts from the model's largest.

    Raises:
        ValueError: if the prompt cannot be optimised.
        FloatingPointError: where the loss is NaN or infinite.

    """
    if len(positive) != 1:
        raise ValueError(f"positive holds {len(positive)} parts; optimise one prompt by itself, and then combine it")
    found: list[Any] = []

    def work(began: Start) -> None:
        share = settings.strength
        asked = settings if share > 0 else replace(settings, iterations=0)
        made, losses = optimize(asked, began, Treatment(), settings.target)
        own = began.prompt
        made = blend(Encoded(own.text.float(), None if own.pooled is None else own.pooled.float()), made, share)
        if 0 < share < 1:  # the score is that of the prompt which is handed out
            losses.append(float(began.gap(Treatment(), prompt=made).flatten(1).norm(dim=1).mean()))
        found.append((made.text[:1], made.pooled[:1] if settings.pooled and made.pooled is not None else None, losses))

    _at_first_call(work, settings.iterations + 1, patcher, positive, negative, latent, seed, sigmas)
    text, pooled, losses = found[0]
    (vectors, extra), device = positive[0], positive[0][0].device
    more = {} if pooled is None else {"pooled_output": pooled.to(device)}
    return [[text.to(device, vectors.dtype), {**extra, **more}]], losses


def adjusted(
    settings: NoiseAdjustment,
    patcher: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    seed: int,
    sigmas: Tensor | None = None,
) -> tuple[FixedNoise, str]:
    """Return starting noise for a latent, adjusted from that of a seed, and what was done. Arguments as ``optimized``.

    Raises:
        ValueError: if there is no noise to adjust.

    """
    found: list[Treatment] = []
    rounds = 2 * settings.rounds if settings.method == "batch" else settings.iterations or 10
    _at_first_call(
        lambda began: found.append(settings.treat(began, Treatment())),
        rounds,
        patcher,
        positive,
        negative,
        latent,
        seed,
        sigmas,
    )
    noise = found[0].noise
    if noise is None:  # strength 0
        with aside(patcher.load_device):
            noise = comfy.sample.prepare_noise(latent["samples"], seed, latent.get("batch_index"))
    return FixedNoise(seed, noise.float().cpu()), "; ".join(found[0].notes)


def _at_first_call(
    work: Work,
    rounds: int,
    patcher: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    seed: int,
    sigmas: Tensor | None,
) -> None:
    patcher = unwatched(patcher)  # this is no run, and no badge should say so
    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(positive, negative)
    guider.set_cfg(GUIDANCE)
    image = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"])
    if sigmas is None:
        sigmas = torch.tensor([float(patcher.get_model_object("model_sampling").sigma_max), 0.0])
    if len(sigmas) < 2:
        raise ValueError("sigmas holds no step; connect the SIGMAS that the sampler gets, or nothing")
    sampler, mask = _AtFirstCall(work, rounds), latent.get("noise_mask")
    try:
        with aside(patcher.load_device):
            noise = comfy.sample.prepare_noise(image, seed, latent.get("batch_index"))
            guider.sample(noise, image, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=seed)
    except (InterruptProcessingException, ValueError, FloatingPointError):
        raise
    except Exception as error:
        raise ValueError(f"{roles.PROMPT} cannot be worked on: {in_words(error)}") from error
