"""Which words of a prompt drive its first-step score, before any sampling.

A sampler of our own makes the workflow's first model call, so that loading, LoRA, areas and ControlNet are ComfyUI's;
then the call is made again with gradients, or with other prompts. The prompt that the caller gave stays untouched.

Part of the ComfyUI host; may import: comfy, torch, memguard's core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor

from ...attributions import ablation, gradient, weighing, words
from ...attributions.moment import Encoded, Moment
from ...records import Attribution, StepEvidence
from . import model, tokens
from .gradients import differentiable, normal
from .inputs import input_gradients, is_open
from .preflight import GUIDANCE, FirstCall
from .watcher import unwatched

Method = Literal["gradient", "ablation"]
NO_INPUT = "a textual inversion has no embedding of its own words; weights are of the encoded prompt"
TEXT, POOLED = "c_crossattn", "y"  # how ComfyUI's models call what they are conditioned on


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
) -> Attribution:
    """Weigh the words of a prompt.

    Args:
        patcher: MODEL.
        clip: CLIP that encodes the prompt.
        prompt: text, with ComfyUI's syntax.
        negative: CONDITIONING to compare with.
        latent: LATENT; its batch size is the number of images that are averaged over.
        seed: of the starting noise, the sampler's own.
        method: "gradient" or "ablation".
        respect_to: of method "gradient": the words' own embeddings, or the encoded prompt.
        substitute: of method "ablation": in place of a word; "" drops it.

    Returns:
        an Attribution; ``status`` says why where there is none.

    Raises:
        ValueError: for an empty prompt.

    """
    if not prompt.strip():
        raise ValueError("text is empty; give the prompt to explain")
    positive = _encode(clip, prompt)
    others = _variants(clip, prompt, substitute) if method == "ablation" else []
    patcher = unwatched(patcher)  # this is no run, and no badge should say so
    guider = comfy.samplers.CFGGuider(patcher)
    roles = {"positive": positive, "negative": negative}
    guider.inner_set_conds(roles | {f"variant {i}": cond for i, (_, cond) in enumerate(others)})
    guider.set_cfg(GUIDANCE)
    image = comfy.sample.fix_empty_latent_channels(patcher, latent["samples"])
    noise = comfy.sample.prepare_noise(image, seed, latent.get("batch_index"))
    sigmas = torch.tensor([float(patcher.get_model_object("model_sampling").sigma_max), 0.0])
    sampler = _Explaining(patcher, clip, prompt, method, [text for text, _ in others])
    guider.sample(noise, image, sampler, sigmas, denoise_mask=latent.get("noise_mask"), disable_pbar=True, seed=seed)
    if sampler.lacks_memory:
        found = explain(patcher, clip, prompt, negative, latent, seed, "ablation", substitute=substitute)
        return replace(found, notes=(*found.notes, weighing.NO_MEMORY))
    if sampler.gradient is None:
        return sampler.found
    # after the sampler: network and text encoder need not share the GPU's memory
    if respect_to == "input" and is_open(clip, prompt):
        with input_gradients(clip, prompt) as pullback:
            return weighing.by_gradient(sampler.found, [sampler.gradient], pullback)
    found = weighing.by_gradient(sampler.found, [sampler.gradient])
    return found if respect_to == "encoded" else replace(found, notes=(*found.notes, NO_INPUT))


def _encode(clip: Any, text: str) -> Any:
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def _variants(clip: Any, prompt: str, substitute: str) -> list[tuple[str, Any]]:
    """Return the prompts without each word, encoded; now, since the sampler has the network in memory."""
    spans = words.merge([words.spans(part, prompt) for part in tokens.columns(clip, prompt)])
    texts = [text for text in ablation.variants(prompt, spans, substitute) if text is not None]
    return [(text, _encode(clip, text)) for text in texts]


class _Explaining(FirstCall):
    """Makes the first model call of a sampler, explains it and ends there."""

    def __init__(self, patcher: Any, clip: Any, prompt: str, method: Method, variants: Sequence[str]) -> None:
        self.patcher, self.clip, self.prompt, self.method, self.variants = patcher, clip, prompt, method, variants
        self.gradient: tuple[Tensor, Tensor | None] | None = None
        self.lacks_memory = False
        self.found = Attribution(method, status="the sampler made no model call")

    def call(self, model: Any, x: Tensor, sigma: Tensor, extra_args: dict[str, Any]) -> None:
        """Explain the first model call."""
        guider = model.inner_model
        call = _Call(guider, x, sigma, extra_args["model_options"])
        conds = guider.conds
        if len(conds["positive"]) != 1:
            count = len(conds["positive"])
            self.found = Attribution(self.method, status=f"the prompt is encoded in {count} parts of the run")
            return
        cond, uncond = call.predict([conds["positive"], conds["negative"]])
        moment = Moment(
            self._evidence(guider, sigma, cond, uncond),
            call.encoded(conds["positive"][0]),
            call.encoded(conds["negative"][0]),
            call.again(conds["positive"][0]),
        )
        spans = words.merge([words.spans(part, self.prompt) for part in tokens.columns(self.clip, self.prompt)])
        self.found = weighing.start(self.method, spans, [moment])
        if self.method == "gradient":
            try:
                self.gradient = self._gradient(guider, conds["positive"][0], moment, call)
            except torch.OutOfMemoryError:
                self.lacks_memory = True
            return
        encoded = [call.encoded(conds[f"variant {i}"][0]).row(0) for i in range(len(self.variants))]
        known = dict(zip(self.variants, encoded, strict=True))
        self.found = weighing.by_ablation(self.found, [moment], self.prompt, lambda texts: [known[t] for t in texts])

    def _gradient(self, guider: Any, cond: dict[str, Any], moment: Moment, call: _Call) -> tuple[Tensor, Tensor | None]:
        with differentiable(guider.inner_model.diffusion_model):
            own = _Call(guider, normal(call.x), normal(call.sigma), call.options)
            evidence = replace(
                moment.evidence,
                noise_cond=normal(moment.evidence.noise_cond),
                noise_uncond=normal(moment.evidence.noise_uncond),
            )
            pooled = None if moment.prompt.pooled is None else normal(moment.prompt.pooled)
            prompt = Encoded(normal(moment.prompt.text), pooled)
            again = Moment(evidence, prompt, None, own.again(_normal_cond(cond)))
            return gradient.prompt_gradient(again)

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
            parameterization=model.parameterization(sampling),
            family=model.family(self.patcher),
        )


class _Call:
    """One model call: its noisy latents, its noise level, and the way to make it again."""

    def __init__(self, guider: Any, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> None:
        self.guider, self.x, self.sigma, self.options = guider, x, sigma, options

    def predict(self, conds: list[list[dict[str, Any]]]) -> list[Tensor]:
        """Return the prediction under each conditioning in units of epsilon (velocity for flow models)."""
        made = comfy.samplers.calc_cond_batch(self.guider.inner_model, conds, self.x, self.sigma, self.options)
        sigma = self.sigma.float().reshape(-1, *[1] * (self.x.ndim - 1))
        return [(self.x.float() - denoised.float()) / sigma for denoised in made]

    def encoded(self, cond: dict[str, Any]) -> Encoded:
        """Return what a processed conditioning gives to the model, one row per image."""
        text = cond["model_conds"][TEXT].cond
        pooled = cond.get("pooled_output")
        rows = len(self.x)
        y = cond["model_conds"].get(POOLED)
        if y is None or pooled is None:
            return Encoded(text[:1].expand(rows, -1, -1))
        return Encoded(text[:1].expand(rows, -1, -1), y.cond[:1, : pooled.shape[-1]].expand(rows, -1))

    def again(self, cond: dict[str, Any]) -> Any:
        """Return the function from other prompts to predictions; all else stays as in ``cond``."""

        def predict(prompt: Encoded) -> Tensor:
            images = len(self.x)
            variants = []
            for start in range(0, len(prompt.text), images):
                part = slice(start, start + images)
                pooled = None if prompt.pooled is None else prompt.pooled[part]
                variants.append([_with(cond, prompt.text[part], pooled)])
            return torch.cat(self.predict(variants))

        return predict


def _with(cond: dict[str, Any], text: Tensor, pooled: Tensor | None) -> dict[str, Any]:
    """Return a processed conditioning with another encoded prompt."""
    parts = dict(cond["model_conds"])
    parts[TEXT] = parts[TEXT]._copy_with(text.to(parts[TEXT].cond))
    if pooled is not None:
        y = parts[POOLED].cond[:1].expand(len(pooled), -1)
        rest = y[:, pooled.shape[-1] :]  # SDXL's sizes follow the pooled vector
        parts[POOLED] = parts[POOLED]._copy_with(torch.cat([pooled.to(y), rest], 1))
    return {**cond, "model_conds": parts}


def _normal_cond(cond: dict[str, Any]) -> dict[str, Any]:
    """Return a processed conditioning whose tensors autograd may save."""
    parts = {
        name: part._copy_with(normal(part.cond)) if isinstance(part.cond, Tensor) else part
        for name, part in cond["model_conds"].items()
    }
    return {**cond, "model_conds": parts}
