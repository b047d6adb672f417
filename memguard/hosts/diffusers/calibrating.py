"""``calibrate``: what ordinary prompts score on a checkpoint, as a Profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ...calibration import Conditions, Profile, ProfileError, fit, negative_of, ordinary_prompts
from ...calibration.profile import MINIMUM
from ...records import Reference, Report
from .scanning import scan


def calibrate(
    pipe: Any,
    prompts: Iterable[str] | None = None,
    detectors: Sequence[str] = ("text_noise_norm",),
    num_images: int = 1,
    steps: int = 1,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    *,
    reference: Reference = "negative",
    negative_prompt: str | None = None,
    batch_size: int | None = None,
    progress: Callable[[Report], None] | None = None,
) -> Profile:
    """Score ordinary prompts and fit a profile to them; ``memguard.calibration.save`` keeps it.

    Args:
        pipe: a diffusers text-to-image pipeline.
        prompts: at least 50 that are not memorized; None takes the shipped ones.
        detectors: names of the detectors to calibrate.
        num_images: images per prompt; a profile holds the mean over them.
        steps: number of model calls to score.
        num_inference_steps: of the schedule.
        guidance_scale: of the run; it does not act on the first step.
        height: pixels; None is the pipeline's own default.
        width: pixels.
        seed: of the first prompt's latents; each prompt has a seed of its own, the next one. A profile over few seeds
            would be theirs, and say too little of the others.
        reference: what prompts are compared with.
        negative_prompt: None is the pipeline's own empty prompt.
        batch_size: prompts per forward.
        progress: called with each report.

    Raises:
        ProfileError: if fewer than 50 prompts have a score.
        ValueError: as ``scan``.

    """
    texts = ordinary_prompts() if prompts is None else list(prompts)
    if len(texts) < MINIMUM:
        raise ProfileError(f"{len(texts)} prompts; a profile needs at least {MINIMUM}")
    detectors = (detectors,) if isinstance(detectors, str) else tuple(detectors)  # as a Guard takes them
    reports: list[Report] = []
    scanned = scan(
        pipe,
        texts,
        detectors,
        num_images,
        steps,
        num_inference_steps,
        guidance_scale,
        height,
        width,
        seed,
        reference=reference,
        negative_prompt=negative_prompt,
        batch_size=batch_size,
        own_seeds=True,
    )
    for report in scanned:
        reports.append(report)
        if progress is not None:
            progress(report)
    distributions = {}
    for i, name in enumerate(detectors):
        scores = [report.findings[i].mean_rms for report in reports]
        usable = [score for score in scores if score is not None]
        if len(usable) < MINIMUM:
            reasons = {report.findings[i].status for report in reports} - {"ok"}
            said = f" ({min(reasons)})" if reasons else ""
            raise ProfileError(f"{len(usable)} prompts with a score{said}; a profile needs at least {MINIMUM}")
        distributions[name] = fit(usable)
    first = next(r for r in reports if r.findings[0].scores and r.noise_gap_map is not None)
    finding, gap = first.findings[0], first.noise_gap_map
    assert gap is not None and finding.sigma is not None
    conditions = Conditions(
        model=first.model,
        family=first.family,
        latent=(gap.shape[-2], gap.shape[-1]),
        sigma=finding.sigma,
        timestep=finding.timestep,
        steps_scored=len(finding.per_step),
        num_steps=num_inference_steps,
        scheduler=first.sampler or "",
        reference=reference,
        dtype=str(pipe.dtype).removeprefix("torch."),
        guidance_scale=guidance_scale,
        negative=negative_of(negative_prompt or "") or "",
        images=num_images,
    )
    note = f"negative prompt: {negative_prompt}" if negative_prompt else ""
    return Profile(conditions, distributions, note)
