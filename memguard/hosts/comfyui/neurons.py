"""Neuron sets as ComfyUI's users keep them, files below models/memguard, and how one is found on a MODEL and a CLIP.

Part of the ComfyUI host.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ... import calibration
from ...aside import aside
from ...neurons import files, localizing
from ...neurons.activations import Tally
from ...neurons.evaluation import ROWS, Trials
from ...neurons.selection import THRESHOLD
from ...neurons.state import State
from ...records import NeuronSet
from ...troubles import Told
from . import model, roles
from .calls import with_prompt
from .preflight import FirstCall
from .probing import ComfyProbe, activations
from .profiles import FOLDER
from .steering import apart
from .tokens import encode
from .watcher import unwatched

ENDING = ".safetensors"
ORDINARY = (
    80  # of the shipped prompts, whose every beginning is mixed: each costs a call, and means need fewer than ranks
)


def names() -> list[str]:
    """Return the neuron files that ComfyUI finds."""
    return [name for name in folder_paths.get_filename_list(FOLDER) if name.endswith(ENDING)]


def path_of(name: str) -> Path:
    """Return the path of a neuron file.

    Raises:
        ValueError: if there is none of that name.

    """
    path = folder_paths.get_full_path(FOLDER, name)
    if path is None:
        raise ValueError(f"neuron set {name!r} is not below models/{FOLDER}; run MemGuard Find Neurons or reload")
    return Path(path)


def save(neurons: NeuronSet, name: str) -> Path:
    """Write a set below models/memguard.

    Raises:
        ValueError: for a name that is none of a file.

    """
    plain = name.strip().removesuffix(ENDING)
    if not re.fullmatch(r"[^\\/:*?\"<>|\x00-\x1f]+", plain) or plain.startswith("."):
        raise ValueError(f"name is {name!r}; give a file name without a folder, such as my_neurons")
    folder = Path(folder_paths.get_folder_paths(FOLDER)[0])
    folder.mkdir(parents=True, exist_ok=True)
    return files.save(neurons, folder / f"{plain}{ENDING}")


def find(
    patcher: Any,
    clip: Any,
    text: str,
    latent: dict[str, Any],
    seed: int = 1,
    images: int = 10,
    threshold: float = THRESHOLD,
    mode: Literal["fast", "official"] = "fast",
    every: bool = False,
    ordinary: Sequence[str] | None = None,
) -> NeuronSet:
    """Find the value neurons that carry the memory of a prompt (Hintersdorf et al., NeurIPS 2024).

    A search that was stopped goes on where it was when it is started again; its file lies in ComfyUI's temporary folder
    and goes when ComfyUI is started anew.

    Args:
        patcher: MODEL.
        clip: its text encoder.
        text: the prompt.
        latent: LATENT of the size that will be sampled.
        seed: of the starting noise.
        images: seeds that are compared.
        threshold: MS-SSIM above which two noise differences show the same picture.
        mode: "official" is NeMo's own procedure; "fast" takes about a tenth of the rows.
        every: search all cross-attention layers, and not those of the down blocks and the middle only.
        ordinary: prompts that are not memorized; None takes 80 of the shipped ones.

    Raises:
        ValueError: for bad input, or a model without cross-attention.

    """
    if not text.strip():
        raise ValueError("text is empty; give the memorized prompt")
    ordinary = calibration.ordinary_prompts()[:ORDINARY] if ordinary is None else ordinary
    # every text before the first call: text encoder and network need not take turns in the GPU's memory
    texts = [encode(clip, each)[0][0][:1].cpu() for each in ordinary]
    patcher = unwatched(patcher)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.inner_set_conds({roles.PROMPT: encode(clip, text)})
    image = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"])[:1]
    image = torch.zeros((images, *image.shape[1:]))
    with aside(patcher.load_device):
        noise = comfy.sample.prepare_noise(image, seed)
    asked = _digest(patcher, text, texts, noise, threshold, mode, every)
    path = Path(folder_paths.get_temp_directory()) / f"memguard-search-{asked}{ENDING}"
    sampler = _Searching(texts, text, threshold, mode, every, State(path, {"asked": asked}))
    sigmas = torch.tensor([float(patcher.get_model_object("model_sampling").sigma_max), 0.0])
    try:
        with aside(patcher.load_device):
            guider.sample(noise, image, sampler, sigmas, disable_pbar=True, seed=seed)
    except Told as why:
        raise ValueError(f"there are no neurons to find: {why}") from None
    path.unlink(missing_ok=True)
    assert sampler.found is not None
    return sampler.found


def _digest(patcher: Any, text: str, texts: Sequence[Tensor], noise: Tensor, *settings: Any) -> str:
    """Return what tells two searches apart: model with LoRAs and the patches of other nodes, texts, seeds, settings."""
    found = hashlib.sha256()
    for fact in (model.name_of(patcher), patcher.patches_uuid, patcher.model_options, text, settings):
        found.update(repr(fact).encode())
    for tensor in (*texts, noise):
        found.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


class _Searching(FirstCall):
    """Searches at the place of a sampler's first model call."""

    def __init__(self, texts: list[Tensor], text: str, threshold: float, mode: Any, every: bool, state: State) -> None:
        self.texts, self.text, self.threshold, self.mode, self.every = texts, text, threshold, mode, every
        self.state = state
        self.found: NeuronSet | None = None

    def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor, *_: Any) -> Any:
        """Return the noise after the search; the signature is that of ComfyUI's samplers."""
        cond = model_wrap.conds[roles.PROMPT][0]
        with apart():
            probe = ComfyProbe(model_wrap, cond, noise.clone(), extra_args["model_options"], self.every)
            tally = Tally()
            for text in self.texts:
                given = with_prompt(cond, text.clone(), None)["model_conds"]["c_crossattn"].cond
                tally.add(activations(probe.hooked, given))
            bar = comfy.utils.ProgressBar(100)
            stop = comfy.model_management.throw_exception_if_processing_interrupted
            trials = Trials(
                probe,
                localizing.parity_of(self.mode, None),
                batch=ROWS,
                state=self.state,
                progress=lambda progress: bar.update_absolute(min(99, progress.rows // 10)),
                cancel=stop,
            )
            try:
                self.found = localizing.search(trials, tally.result(probe.model), self.text, self.mode, self.threshold)
            finally:
                self.state.save(probe.rows, now=True)
        return noise
