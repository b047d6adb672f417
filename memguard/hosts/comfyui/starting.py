"""A model call as mitigations see it: ``Start`` for the first one, ``Step`` for each one that is guided.

Part of the ComfyUI host; may import: comfy, torch, memguard.attributions, memguard.mitigations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...attributions.moment import Encoded
from ...mitigations.base import Start, Unsuitable, View
from ...records import Finding
from ..inference import differentiable, normal
from . import model, roles
from .calls import Call, Cond, leading, normal_cond, rows_of, with_prompt
from .edits import Editor
from .prompts import Prompts

EOS_PADDED = {"sdxl": 768}  # features of CLIP-L; SD1's text is all of it


@dataclass(frozen=True)
class Began:
    """What a sampler was started with (SAMPLER_SAMPLE)."""

    sampler: Any
    sigmas: Tensor
    noise: Tensor
    latent: Tensor
    mask: Tensor | None

    def pure(self, guider: Any) -> bool:
        """Whether it starts from nothing but noise."""
        if self.mask is not None or not bool(torch.count_nonzero(self.noise)):
            return False
        return not bool(torch.count_nonzero(self.latent)) or bool(self.sampler.max_denoise(guider, self.sigmas))

    def scaled(self, guider: Any, noise: Tensor) -> Tensor:
        """Return the noisy latents that a sampler makes of noise, as every sampler of ComfyUI does."""
        sigmas, latent = self.sigmas, self.latent
        if torch.is_grad_enabled():
            sigmas, latent = normal(sigmas), normal(latent)
        scaling = guider.inner_model.model_sampling.noise_scaling
        start: Tensor = scaling(sigmas[0], noise.to(self.noise), latent, self.sampler.max_denoise(guider, self.sigmas))
        return start


class Predictor:
    """Predicts a model call again, with another prompt, other noise, other edits.

    Args:
        call: the model call, its options without any edits of ours.
        began: what the sampler was started with.
        editor: of the run.
        count: told the rows that predictions cost.
        step: index of the call.

    """

    def __init__(
        self, call: Call, began: Began | None, editor: Editor, count: Callable[[int], None], step: int
    ) -> None:
        self.call, self.began, self.editor, self.count, self.step = call, began, editor, count, step
        self._own: dict[int, tuple[Encoded, str]] = {}  # which of the guider's roles an Encoded stands for
        self._mode = torch.is_inference_mode_enabled()

    def encoded(self, role: str) -> Encoded:
        """Return what a role gives to the model; predicting with it takes all parts, areas and time limits."""
        found = self.call.encoded(self.call.guider.conds[role][0])
        self._own[id(found)] = found, role
        return found

    def __call__(self, view: View) -> Tensor:
        """Return the prediction of a view, float32 [B, C, h, w] in units of epsilon."""
        _, role = self._own.get(id(view.prompt), (None, None))
        conds = self.call.guider.conds[role or roles.PROMPT]
        if role is None:
            conds = [exchanged(conds, view.prompt)]
        call = self.at(view.noise)
        if torch.is_grad_enabled():
            call, conds = call.normal(), [_normal(cond, view.prompt) for cond in conds]
        call.options = self.editor.options(call.options, view.edits, self.step, float(self.call.sigma.flatten()[0]))
        with self.as_sampled():
            made = call.predict([conds])[0]
        self.count(rows_of(conds, call.x, call.sigma))
        return made

    @contextmanager
    def as_sampled(self) -> Iterator[None]:
        """Make a call as the sampler does, which may write to weights: in its inference mode, but for gradients."""
        if torch.is_grad_enabled() or not self._mode:
            yield
            return
        with torch.inference_mode():
            yield

    def at(self, noise: Tensor | None) -> Call:
        """Return the call at other noise.

        Raises:
            Unsuitable: where the noise cannot be changed.

        """
        x = self.call.x
        if noise is not None:
            if self.began is None:
                raise Unsuitable("the guider starts its sampler in a way of its own, so the noise cannot be changed")
            x = self.began.scaled(self.call.guider, noise)
        return Call(self.call.guider, x, self.call.sigma, self.call.options)


def exchanged(conds: Sequence[Cond], prompt: Encoded) -> Cond:
    """Return the one conditioning of a role with another prompt.

    Raises:
        Unsuitable: if the role has several parts.

    """
    if len(conds) != 1:
        raise Unsuitable(
            f"the prompt is combined of {len(conds)} parts, and only a prompt of one part can be exchanged"
        )
    return with_prompt(conds[0], prompt.text, prompt.pooled)


def _normal(cond: Cond, prompt: Encoded) -> Cond:
    """Return a conditioning that autograd may save, with the graph of its prompt."""
    found = normal_cond(cond)
    return with_prompt(found, prompt.text, prompt.pooled) if prompt.text.requires_grad or _leads(prompt) else found


def _leads(prompt: Encoded) -> bool:
    return prompt.pooled is not None and prompt.pooled.requires_grad


def start(predict: Predictor, prompts: Prompts, reference: str | None, finding: Finding | None) -> Start:
    """Return the start of a run.

    Args:
        predict: of its first model call.
        prompts: what is known of its texts.
        reference: the role that it guides away from; None without guidance.
        finding: what text_noise_norm says of the call; None where it was not asked.

    """
    call, editor, began = predict.call, predict.editor, predict.began
    guider, network = call.guider, call.guider.inner_model.diffusion_model
    parts = guider.conds[roles.PROMPT]
    prompt = predict.encoded(roles.PROMPT)
    family = model.family(guider.model_patcher)
    tables = [prompts.table(part) for part in parts]
    text = prompts.text(parts[0]) if len(parts) == 1 else " | ".join(filter(None, map(prompts.text, parts)))

    def encode(texts: Sequence[str], padding: int | None = None) -> Encoded:
        if len(parts) != 1:
            exchanged(parts, prompt)
        made = prompts.encode(texts, padding)
        filled = prompt.text.shape[1] - made.text.shape[1] if leading(parts[0]) else 0
        if filled <= 0:
            return made
        left = prompt.text[:1, :filled].to(made.text).expand(len(texts), -1, -1)  # as the model fills up its own
        return replace(made, text=torch.cat([left, made.text], 1))

    known = tables[0] if len(parts) == 1 else next((table for table in tables if table is not None), None)
    pure = began is not None and began.pure(guider)
    return Start(
        prompt=prompt,
        reference=None if reference is None else predict.encoded(reference),
        noise=began.noise.float() if began is not None and pure else None,
        size=tuple(call.x.shape[1:]),
        predict=predict,
        groups=None if known is None else known.to(call.x.device),
        texts=(text,) if text else (),
        encode=None if prompts.clip is None else encode,
        widths=editor.widths,
        model=model.name_of(guider.model_patcher),
        eos_padded=prompt.text.shape[-1] if family == "sd15" else EOS_PADDED.get(family, 0),
        family=family,
        sigma=float(call.sigma.flatten()[0]),
        threshold=None if finding is None else finding.threshold,
        typical=None if finding is None else finding.typical,
        gradients=lambda: differentiable(getattr(network, "_orig_mod", network)),
        word=None if prompts.clip is None else prompts.word,
        cancelled=comfy.model_management.throw_exception_if_processing_interrupted,
    )
