"""Which words of a prompt drive its first-step score, before any sampling.

A sampler of our own makes the workflow's first model call, so that loading, LoRA, areas and ControlNet are ComfyUI's;
then the call is made again with gradients, or with other prompts. The prompt that the caller gave stays untouched.

Part of the ComfyUI host.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import comfy.sample
import comfy.samplers
import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor

from ...aside import aside
from ...attributions import ablation
from ...records import Attribution, StepEvidence
from ...troubles import UNFORESEEN, Told, careful, in_words
from . import graph, model, screen, tokens
from .attention import AttentionReader, Unreadable
from .calls import Call, alone, layout_of
from .coverage import both, coverage
from .naming import Namer
from .preflight import GUIDANCE, FirstCall
from .watcher import unwatched
from .weighing import NOT_YET, Method, Weighing

log = logging.getLogger("memguard")

STOOD_IN = "no gradient ({}); ablation stood in"
SAME = (
    "the model gives the same prediction without any of the words: it makes nothing of the prompt, or another node "
    "answers from a cache"
)
FAILED = "the first model call failed ({}); ComfyUI's log tells more"


def explain(
    patcher: Any,
    clip: Any,
    prompt: str,
    negative: Any,
    latent: dict[str, Any],
    seed: int = 0,
    method: Method = "gradient",
    respect_to: Literal["input", "encoded"] = "input",
    substitute: str = "",
    positive: Any = None,
) -> Attribution:
    """Weigh the words of a prompt.

    Args:
        patcher: MODEL.
        clip: CLIP that encodes the prompt.
        prompt: text, with ComfyUI's syntax.
        negative: CONDITIONING to compare with.
        latent: LATENT; its batch size is the number of images that are averaged over.
        seed: of the starting noise, the sampler's own.
        method: "gradient", "ablation", or "attention" (UNets).
        respect_to: of method "gradient": the words' own embeddings, or the encoded prompt.
        substitute: of method "ablation": in place of a word; "" drops it.
        positive: CONDITIONING that the sampler gets, of several parts, with areas or time limits; its texts are looked
            for in the workflow. None encodes ``prompt``.

    Returns:
        an Attribution; ``status`` says why where there is none.

    Raises:
        ValueError: for an empty prompt.

    """
    if positive is None and not prompt.strip():
        raise ValueError("text is empty; give the prompt to explain")
    reasons = []

    def failed(error: Exception) -> None:
        if not isinstance(error, Told):
            log.warning("%s: %s", type(error).__name__, error, exc_info=error)
        said = in_words(error)
        reasons.append(FAILED.format(type(error).__name__) if said == UNFORESEEN else said)

    with careful(failed, InterruptProcessingException):
        return _explain(patcher, clip, prompt, negative, latent, seed, method, respect_to, substitute, positive)
    return Attribution(method, status=reasons[0])


def _explain(
    patcher: Any,
    clip: Any,
    prompt: str,
    negative: Any,
    latent: dict[str, Any],
    seed: int,
    method: Method,
    respect_to: Literal["input", "encoded"],
    substitute: str,
    positive: Any,
) -> Attribution:
    prompt_id, node_id = screen.place()
    behind = graph.prompt_texts(screen.running_prompt(prompt_id), node_id, "positive", screen.index())
    namer = Namer(clip, [prompt, *behind] if positive is not None else [prompt])
    if positive is None:
        positive = tokens.encode(clip, prompt)
    others = _variants(namer, positive, substitute) if method == "ablation" else {}
    patcher = unwatched(patcher)  # this is no run, and no badge should say so
    guider = comfy.samplers.CFGGuider(patcher)
    roles = {"positive": positive, "negative": negative}
    guider.inner_set_conds(roles | {f"variant {i}": cond for i, cond in enumerate(others.values())})
    guider.set_cfg(GUIDANCE)
    image = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"])
    sigmas = torch.tensor([float(patcher.get_model_object("model_sampling").sigma_max), 0.0])
    weigh = Weighing(namer, method, respect_to, substitute)
    sampler = _Explaining(patcher, weigh, list(others))
    mask = latent.get("noise_mask")
    with aside(patcher.load_device):
        noise = comfy.sample.prepare_noise(image, seed, latent.get("batch_index"))
        guider.sample(noise, image, sampler, sigmas, denoise_mask=mask, disable_pbar=True, seed=seed)
    if weigh.failed and method == "gradient":
        found = _explain(patcher, clip, prompt, negative, latent, seed, "ablation", respect_to, substitute, positive)
        return replace(found, notes=(*found.notes, STOOD_IN.format(weigh.failed)))
    # after the sampler: network and text encoder need not share the GPU's memory
    return _honest(weigh.finish())


def _honest(found: Attribution) -> Attribution:
    """Return an attribution; without words where the model gave the same prediction for every one of them."""
    silent = found.weights and not any(found.weights) and NOT_YET not in found.notes
    if found.method == "ablation" and found.status == "ok" and silent:
        return Attribution(found.method, status=SAME)
    return found


def _variants(namer: Namer, positive: Any, substitute: str) -> dict[tuple[int, str], Any]:
    """Return the prompt without each word, encoded; now, since the sampler has the network in memory.

    Keys are the part of the prompt and the text that is left of it.
    """
    found = {}
    for index, (vectors, extra) in enumerate(positive):
        for segment in namer.segments(vectors):
            if segment.text is None:
                continue
            here, after = segment.columns, vectors[:, segment.columns.stop :]
            for text in ablation.variants(segment.text, segment.spans(namer.clip), substitute):
                if text is None:
                    continue
                own, more = tokens.encode(namer.clip, text)[0]
                pooled = {k: more[k] for k in ("pooled_output",) if k in more and segment.start == 0}
                cut = torch.cat([vectors[:, : here.start], own.to(vectors), after], 1)
                found[index, text] = [[cut, {**extra, **pooled}]]
    return found


class _Explaining(FirstCall):
    """Makes the first model call of a sampler, explains it and ends there."""

    def __init__(self, patcher: Any, weigh: Weighing, variants: Sequence[tuple[int, str]]) -> None:
        self.patcher, self.weigh, self.variants = patcher, weigh, variants

    def call(self, model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> None:
        """Explain the first model call."""
        guider = model.inner_model
        options = alone(extra_args["model_options"])
        call = Call(guider, x, sigma, options)
        conds: Mapping[str, Any] = guider.conds
        positive, negative = conds["positive"], conds["negative"]
        reader = AttentionReader(guider.inner_model) if self.weigh.method == "attention" else None
        if reader is not None:
            reader.expect(positive, [0], x)
            call = Call(guider, x, sigma, reader.options(options))
        cond, uncond = call.predict([positive, negative])
        if reader is not None and len(reader.masses) < sum(call.active(cond) for cond in positive):
            raise Unreadable(reader.reason or "the attention of a part of the prompt was not read")
        evidence = self._evidence(guider, sigma, cond, uncond)
        evidence = replace(evidence, coverage=both(coverage(positive, x, sigma), coverage(negative, x, sigma)))
        encoded = [call.encoded(conds[f"variant {i}"][0]).row(0) for i in range(len(self.variants))]
        known = dict(zip(self.variants, encoded, strict=True)) if self.weigh.method == "ablation" else None
        masses = None if reader is None else reader.masses
        self.weigh.take(call, positive, negative[0], evidence, masses, known)

    def _evidence(self, guider: Any, sigma: Tensor, cond: Tensor, uncond: Tensor) -> StepEvidence:
        sampling = guider.inner_model.model_sampling
        return StepEvidence(
            step=0,
            num_steps=1,
            sigma=float(sigma[0]),
            sigma_max=float(sampling.sigma_max),
            timestep=model.timestep(sampling, sigma),
            noise_cond=cond,
            noise_uncond=uncond,
            layout=layout_of(guider.conds["positive"]),
            parameterization=model.parameterization(sampling),
            family=model.family(self.patcher),
        )
