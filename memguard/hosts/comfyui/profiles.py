"""Profiles as ComfyUI's users keep them: JSON files below models/memguard, and how one is made from a MODEL and a CLIP.

Part of the ComfyUI host.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import folder_paths
import torch

from ... import calibration, detectors
from ...calibration import Conditions, Profile, ProfileError
from ...calibration import store as profile_store
from ...calibration.conditions import EMPTY, UNKNOWN, negative_of
from ...calibration.profile import MINIMUM
from ...records import Reference
from . import graph, model, screen
from .naming import confirmed
from .preflight import GUIDANCE, first_calls
from .tokens import encode

FOLDER = "memguard"


def register() -> None:
    """Make models/memguard known to ComfyUI and to the search for profiles; extra_model_paths.yaml may add folders."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    for folder in reversed(folder_paths.get_folder_paths(FOLDER)):
        profile_store.register(folder)


def names() -> list[str]:
    """Return the profile files that ComfyUI finds."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(".json")]


def path_of(name: str) -> Path:
    """Return the path of a profile file.

    Raises:
        ProfileError: if there is none of that name.

    """
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise ProfileError(f"profile {name!r} is not below models/{FOLDER}; run MemGuard Calibrate, or reload the page")
    return Path(path)


def calibrate(
    patcher: Any,
    clip: Any,
    latent: dict[str, Any],
    negative: Any = None,
    seed: int = 0,
    name: str = "",
    texts: list[str] | None = None,
) -> list[Profile]:
    """Score ordinary prompts on a model and save what they score.

    Args:
        patcher: the model as the checkpoint loader returns it.
        clip: its text encoder.
        latent: LATENT of the size that will be sampled.
        negative: CONDITIONING to compare with; None is the empty prompt.
        seed: of the first prompt's noise; the others follow.
        name: note in the profile.
        texts: at least 50 prompts that are not memorized; None takes the shipped ones.

    Returns:
        the saved profiles: one for runs with this negative prompt and, where it is the empty one, one for reference
        "empty" as well.

    Raises:
        ProfileError: if there are too few prompts, if a LoRA is applied, or if prompts have no score.

    """
    texts = list(calibration.ordinary_prompts()) if texts is None else texts
    if len(texts) < MINIMUM:
        raise ProfileError(f"{len(texts)} prompts, one per line; a profile needs at least {MINIMUM}, or none for ours")
    if model.remarks(patcher):
        raise ProfileError(
            "model has a LoRA or another patch; connect MemGuard Calibrate to the checkpoint's own MODEL"
        )
    references: tuple[Reference, ...] = ("negative",) if negative is not None else ("negative", "empty")
    against = EMPTY if negative is None else _known(clip, negative)
    negative = negative if negative is not None else encode(clip, "")
    # every text before the first call: text encoder and network need not take turns in the GPU's memory
    prompts = [(encode(clip, text), seed + i) for i, text in enumerate(texts)]
    asked = [name for name, detector in detectors.available().items() if "late" not in detector.NEEDS]
    scores: dict[str, list[float]] = {name: [] for name in asked}
    for number, run in enumerate(first_calls(patcher, prompts, negative, latent, detectors=asked)):
        if not run.evidence:
            raise ProfileError(f"ordinary prompt {number + 1} has no score, because {run.reason}")
        for name in list(scores):
            detector = detectors.get(name)
            finding = detector.detect(run.evidence)
            if finding.mean_rms is not None:
                scores[name].append(finding.mean_rms)
            elif "attention" in detector.NEEDS:
                del scores[name]  # a model without cross-attention
            else:
                raise ProfileError(f"ordinary prompt {number + 1} has no score, because {finding.status}")
    first = run.evidence[0]
    fitted = {name: calibration.fit(rms) for name, rms in scores.items()}
    saved = []
    for reference in references:
        conditions = Conditions(
            model=model.sampled(patcher),
            family=model.family(patcher),
            latent=first.size,
            sigma=first.sigma,
            timestep=first.timestep,
            steps_scored=1,
            num_steps=1,
            scheduler="first model call",
            reference=reference,
            dtype=str(patcher.model_dtype()).removeprefix("torch."),
            guidance_scale=GUIDANCE,
            negative=against,
            images=len(first.noise_cond),
        )
        profile = Profile(conditions, fitted, name)
        path = calibration.save(profile, folder_paths.get_folder_paths(FOLDER)[0])
        saved.append(Profile.read(path))
    return saved


def _known(clip: Any, negative: Any) -> str:
    """Return what stands for a negative conditioning: its text's hash if that text encodes to it, else its own."""
    prompt_id, node_id = screen.place()
    texts = graph.prompt_texts(screen.running_prompt(prompt_id), node_id, "negative", screen.index())
    text = confirmed(clip, ["", *texts], [each[0] for each in negative])
    if text is not None:
        return negative_of(text) or UNKNOWN
    vectors = torch.cat([each[0].flatten().to("cpu", torch.float32) for each in negative])
    return UNKNOWN + hashlib.sha256(vectors.numpy().tobytes()).hexdigest()[:8]
