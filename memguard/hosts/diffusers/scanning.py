"""``scan``: score a list of prompts, each run stopped after the scored steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...calibration import Profile, Sensitivity
from ...records import Reference, Report
from .scans import Scan


def scan(
    pipe: Any,
    prompts: Iterable[Any],
    detectors: Sequence[str] = ("text_noise_norm",),
    num_images: int = 1,
    steps: int = 1,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    profile: Profile | None = None,
    *,
    reference: Reference = "negative",
    negative_prompt: str | None = None,
    sensitivity: float | Sensitivity = 99.0,
    batch_size: int | None = None,
    own_seeds: bool = False,
    seeds: Iterable[int] | None = None,
) -> Iterator[Report]:
    """Score prompts; yields one Report per prompt, in order, while ``prompts`` is read.

    A prompt that cannot be scored (no text, NaN, an error of its own) gives a report with the reason and the scan goes
    on. Memory does not grow with the number of prompts.

    Args:
        pipe: a diffusers text-to-image pipeline.
        prompts: texts; may be a generator.
        detectors: names of the detectors to ask.
        num_images: images per prompt, each with its own score.
        steps: number of model calls to score and to run.
        num_inference_steps: of the schedule that those are the first of.
        guidance_scale: of the run; it does not act on the first step.
        height: pixels; None is the pipeline's own default.
        width: pixels.
        seed: the latents are ONE randn of [num_images, C, h, w], the same for each prompt.
        profile: what ordinary prompts score; None looks for one by the model's fingerprint.
        reference: "negative" compares with ``negative_prompt``, "empty" with the empty prompt.
        negative_prompt: None is the pipeline's own empty prompt.
        sensitivity: percentile of ordinary prompts above which a prompt is suspicious.
        batch_size: prompts per forward.
        own_seeds: prompt i starts from latents of its own, those of ``seed + i``, instead of all from the same.
        seeds: one for each prompt, instead of ``seed`` and ``own_seeds``.

    Raises:
        ValueError: for a setting out of range or a pipeline that does not make pictures from text alone; while
            iterating, for fewer seeds than prompts.

    """
    if seeds is not None and own_seeds:
        raise ValueError("give own_seeds or seeds, not both")
    prepared = Scan(
        pipe,
        detectors=detectors,
        num_images=num_images,
        steps=steps,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        seed=seed,
        profile=profile,
        reference=reference,
        negative_prompt=negative_prompt,
        sensitivity=sensitivity,
        batch_size=batch_size,
        own_seeds=own_seeds or seeds is not None,
    )
    return prepared.reports(prompts, seeds)
