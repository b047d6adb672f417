"""memguard.neurons on diffusers pipelines: statistics, select, noise_difference, localize, calibrate.

Only the model's own text encoder and UNet are asked, with prompt rows alone; blocking hooks are on the UNet during
a call only. Models without cross-attention (SD3, Flux) are refused with the reason.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from torch import Tensor

from ...neurons import files, localizing, selection
from ...neurons.activations import ActivationStatistics
from ...neurons.evaluation import ROWS, Progress, Trials, similarity_of_seeds
from ...neurons.localizing import Mode, Parity
from ...neurons.outcome import flat
from ...neurons.state import State
from ...records import NeuronSet
from .probing import probe_of
from .responses import select, statistics

__all__ = ["calibrate", "localize", "noise_difference", "select", "statistics"]


def noise_difference(
    pipe: Any,
    prompt: str,
    num_images: int = 10,
    seed: int = 1,
    neurons: NeuronSet | None = None,
    parity: Literal["official"] | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    force: bool = False,
) -> Tensor:
    """Return what a prompt adds to the starting noise, as NeMo compares it: (noise prediction - noise), scaled.

    By default the model sees what a run of 50 steps begins with: the pipeline's own latents at the first timestep (981
    for DDIM), the prediction in units of epsilon.

    Args:
        pipe: a diffusers pipeline with a UNet.
        prompt: the text; there is no guidance.
        num_images: seeds, rows of ONE randn.
        seed: of that noise.
        neurons: to block.
        parity: "official" evaluates the second timestep (961 for DDIM) on untouched float32 noise, and takes the
            prediction as it is, like NeMo's code, which never makes the first step.
        height: pixels; None is the pipeline's own default.
        width: pixels.
        force: accept neurons of another checkpoint.

    Returns:
        float32 [num_images, C, h, w] in [0, 1], scaled per picture AND channel.

    Raises:
        ValueError: for neurons that do not fit the model, or another bad setting.

    """
    if parity not in (None, "official"):
        raise ValueError(f"parity is {parity!r}; use None or official")
    probe = probe_of(pipe, prompt, num_images, seed, "all", height, width)
    blocked = neurons or NeuronSet({})
    files.check(blocked, probe.layers, probe.model, force)
    trials = Trials(probe, parity, blocked.scale)
    try:
        return trials.predict([flat(blocked.indices)] * num_images)
    finally:
        pipe.maybe_free_model_hooks()


def localize(
    pipe: Any,
    prompt: str,
    statistics: ActivationStatistics,
    mode: Mode = "fast",
    *,
    parity: Parity | None = None,
    num_images: int = 10,
    seed: int = 1,
    threshold: float = selection.THRESHOLD,
    scale: float = 0.0,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = ROWS,
    resume: Path | str | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancel: Callable[[], object] | None = None,
) -> NeuronSet:
    """Find the value neurons that carry the memory of a prompt (Hintersdorf et al., NeurIPS 2024).

    Args:
        pipe: a diffusers pipeline with a UNet.
        prompt: the text.
        statistics: of ordinary prompts on this model; its layers are searched.
        mode: "official" is NeMo's own procedure, one evaluation per neuron; "fast" finds a set at the
            same score, mostly the same or a smaller one (docs/evidence/neurons.md), with about a tenth of the rows
            where candidates are many.
        parity: "official" or "repaired"; None is "official" for mode official, else "repaired". Official: noise of
            ``noise_difference(parity="official")``, torchmetrics' dynamic range, theta = 1 is never tried. Repaired:
            the noise that the pipeline starts with, dynamic range 1, theta = 1 is tried too.
        num_images: seeds.
        seed: of their noise.
        threshold: MS-SSIM above which two noise differences show the same picture; NeMo's for SD1.4, see ``calibrate``.
        scale: factor on blocked neurons.
        height: pixels; None is the pipeline's own default.
        width: pixels.
        batch_size: rows of one forward; halved when memory runs out.
        resume: file for what was evaluated; a search that was ended goes on from it and repeats nothing.
        progress: called after each evaluation.
        cancel: called before each evaluation; what it raises ends the search.

    Returns:
        A NeuronSet; empty, with a provenance that says so, where the prompt does not look memorized.

    Raises:
        ValueError: for statistics of another model, a resume file of another search, or another bad setting.

    """
    chosen = localizing.parity_of(mode, parity)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least 1 is needed")
    probe = probe_of(pipe, prompt, num_images, seed, list(statistics.mean), height, width)
    request = {
        "model": probe.model,
        "prompt": prompt,
        "mode": mode,
        "parity": chosen or "repaired",
        "num_images": num_images,
        "seed": seed,
        "threshold": threshold,
        "scale": scale,
        "latents": list(probe.call.x.shape[1:]),
        "dtype": str(probe.call.x.dtype),
        "scheduler": type(pipe.scheduler).__name__,
        "statistics": _digest(statistics),
    }
    state = State(resume, request)
    trials = Trials(probe, chosen, scale, batch_size, state, progress, cancel)
    try:
        return localizing.search(trials, statistics, prompt, mode, threshold)
    finally:
        state.save(probe.rows, now=True)
        pipe.maybe_free_model_hooks()


def calibrate(
    pipe: Any,
    prompts: Iterable[str],
    num_images: int = 10,
    seed: int = 1,
    parity: Literal["official"] | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> float:
    """Return the threshold for ``localize``: mean + 1 standard deviation of what ordinary prompts score.

    A prompt's score is the largest MS-SSIM between the noise differences of two seeds. NeMo's .428 is that of SD1.4 at
    512 x 512. The official script measures it with guidance of which the halves are swapped; here there is none, as in
    the search itself.

    Raises:
        ValueError: for fewer than two prompts or seeds, or another bad setting.

    """
    if num_images < 2:
        raise ValueError(f"num_images is {num_images}; seeds are compared with each other, so give at least 2")
    scores = []
    for prompt in prompts:
        deltas = noise_difference(pipe, prompt, num_images, seed, None, parity, height=height, width=width)
        scores.append(max(similarity_of_seeds(deltas, parity)))
        if progress is not None:
            progress(len(scores))
    if len(scores) < 2:
        raise ValueError(f"{len(scores)} prompts have no spread; give at least 2 ordinary ones, better hundreds")
    return mean(scores) + stdev(scores)


def _digest(statistics: ActivationStatistics) -> str:
    parts = hashlib.sha256()
    for tensors in (statistics.mean, statistics.std):
        for name, tensor in tensors.items():
            parts.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return parts.hexdigest()[:16]
