"""The first model call of a workflow's sampler, without the sampling: its score costs one evaluation of both prompts.

x at step 0 is what every ComfyUI sampler starts from: ``model_sampling.noise_scaling`` of the workflow's own noise. The
call goes through ComfyUI's guider, so that loading, LoRA, areas and ControlNet are the sampler's own.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...aside import aside
from ...guard import Guard, Run
from ...records import Report, StepEvidence
from . import screen
from .watcher import Watcher

# any value but 1, at which ComfyUI leaves the negative prompt out; no guided step is taken
GUIDANCE = 2.0
# what the report of several seeds takes over from the first one's
SAME = ("host", "host_version", "model", "family", "prompt", "negative_prompt", "width", "height", "notes")


class FirstCall(comfy.samplers.Sampler):
    """Makes the first model call of a sampler and ends there."""

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Any = None,
        denoise_mask: Any = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """Return the noisy latents after one model call on them."""
        call = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        call.latent_image, call.noise = latent_image, noise
        scaling = model_wrap.inner_model.model_sampling.noise_scaling
        x = scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas))
        self.call(call, x, sigmas[0] * x.new_ones([len(x)]), {**extra_args, "denoise_mask": denoise_mask})
        return x

    def call(self, model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> None:
        """Make the model call; ``model`` knows the guider as ``inner_model``."""
        model(x, sigma, **extra_args)


class _Collecting(Guard):
    """A guard that keeps its runs, so that several seeds can be scored as one batch."""

    runs: tuple[Run, ...] = ()

    def begin(self, **facts: Any) -> Run:
        run = super().begin(**facts)
        self.runs = (*self.runs, run)
        return run


def first_calls(
    patcher: Any,
    prompts: Sequence[tuple[Any, int]],
    negative: Any,
    latent: dict[str, Any],
    sigmas: Tensor | None = None,
    detectors: Sequence[str] = ("text_noise_norm",),
    bar: Any = None,
) -> tuple[Run, ...]:
    """Return one run per prompt, each with the evidence of its first model call or the reason why there is none.

    Args:
        patcher: the model; loaded once for all prompts.
        prompts: CONDITIONING and seed of each call.
        negative: CONDITIONING to compare with.
        latent: LATENT; its picture, batch indices and noise mask count.
        sigmas: of the sampler; None starts from pure noise.
        detectors: whose evidence is collected.
        bar: ComfyUI's progress bar that gets a unit for each; None makes one.

    """
    guard = _Collecting(detectors)
    watched = Watcher(guard, silent=True).install(patcher)
    image = comfy.sample.fix_empty_latent_channels(watched, latent["samples"])
    if sigmas is None:
        sigmas = torch.tensor([float(watched.get_model_object("model_sampling").sigma_max), 0.0])
    if len(sigmas) < 2:
        raise ValueError("sigmas holds no step; connect the SIGMAS that the sampler gets, or nothing")
    bar = bar or comfy.utils.ProgressBar(len(prompts))
    for positive, seed in prompts:
        comfy.model_management.throw_exception_if_processing_interrupted()
        with aside(watched.load_device):
            comfy.samplers.sample(
                watched,
                comfy.sample.prepare_noise(image, seed, latent.get("batch_index")),
                positive,
                negative,
                GUIDANCE,
                watched.load_device,
                FirstCall(),
                sigmas,
                model_options=watched.model_options,
                latent_image=image,
                denoise_mask=latent.get("noise_mask"),
                disable_pbar=True,
                seed=seed,
            )
        bar.update(1)
    return guard.runs


def check(
    guard: Guard,
    patcher: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any],
    seeds: Sequence[int],
    sigmas: Tensor | None = None,
) -> Report:
    """Score a prompt before any sampling, for several seeds at once.

    Raises:
        MemorizationStop: under policy "stop", if the prompt looks memorized.

    """
    runs = first_calls(patcher, [(positive, seed) for seed in seeds], negative, latent, sigmas, guard.detectors)
    guard.sink = None
    known = runs[0].report
    run = guard.begin(
        **{name: getattr(known, name) for name in SAME},
        seeds=tuple(seeds),
        sampler="none: prompt check",
        steps=0,
    )
    failed = next((r for r in runs if not r.evidence), None)
    try:
        if failed is None:
            run.observe(_together([r.evidence[0] for r in runs]))
        else:
            run.learn(error=failed.report.error)
            run.unavailable(failed.reason or "the model made no prediction")
            run.insist()
    finally:
        report = run.finish()
        screen.show(report)
    return report


def _together(parts: list[StepEvidence]) -> StepEvidence:
    """Return the evidence of several calls as one batch."""
    coverage = None
    if any(part.coverage is not None for part in parts):
        coverage = torch.cat([_coverage(part) for part in parts])
    attention = None
    if all(part.attention is not None for part in parts):
        masses = [part.attention or {} for part in parts]
        attention = {name: torch.cat([each[name] for each in masses]) for name in masses[0]}
    return replace(
        parts[0],
        noise_cond=torch.cat([part.noise_cond for part in parts]),
        noise_uncond=torch.cat([part.noise_uncond for part in parts]),
        coverage=coverage,
        attention=attention,
    )


def _coverage(part: StepEvidence) -> Tensor:
    shape = (len(part.noise_cond), 1, *part.noise_cond.shape[2:])
    if part.coverage is None:
        return torch.ones(shape, dtype=torch.bool, device=part.noise_cond.device)
    return part.coverage.expand(shape)
