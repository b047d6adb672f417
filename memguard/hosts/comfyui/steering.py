"""Carries out a treatment in one sampling run: other noise, text and edits before a model call, another gap after it.

Other noise needs another start: samplers keep the noisy latents to themselves, some scale them first (uni_pc) and some
mix them with a picture, so writing into them would be right for some samplers only. What is the same for all of them is
how they are started (SAMPLER_SAMPLE). So the attempt in progress ends at its first model call, with ``Again``, and the
sampler is started once more, with the noise of the treatment and random numbers of its own from the same seed.

Part of the ComfyUI host; may import: comfy, torch, memguard.mitigations.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ...mitigations.base import Step, Treatment
from . import model, roles
from .attention import eager
from .calls import Call
from .edits import LEFT, Editor
from .prompts import Prompts
from .starting import Began, Predictor, exchanged
from .windows import past_windows

NO_GUIDANCE = "guidance was left alone: the sampler makes no prediction without the prompt to guide away from"
TWO_CALLS = "guidance was left alone: prompt and negative prompt are predicted in two calls, and it needs both in one"
REST = 0.01  # of the gap where nothing is to be left of it: PerpNeg's guider divides by its norm
ODD = "the guider starts its sampler in a way of its own, so the run cannot be treated"

log = logging.getLogger("memguard")


class Again(BaseException):
    """Ends a sampler at its first model call, to be started once more. No error: nothing may swallow it."""

    def __init__(self, steering: Steering) -> None:
        super().__init__("the first step is made again under a mitigation")
        self.steering = steering


class Steering:
    """One run and its treatment.

    Args:
        guider: of the run.
        prompts: what is known of its texts.
        count: told the rows that the treatment costs.

    Attributes:
        treatment: that the run is under; nothing before ``adopt``.
        began: what the sampler was started with.
        calls: number of model calls so far.
        armed: whether the predictions of a model call are expected.
        notes: what the user must know, each line once.

    """

    def __init__(self, guider: Any, prompts: Prompts, count: Callable[[int], None]) -> None:
        self.guider, self.prompts, self.count = guider, prompts, count
        self.treatment = Treatment()
        self.began: Began | None = None
        self.calls = 0
        self.armed = False
        self.notes: dict[str, None] = {}
        self.editor = Editor(guider, prompts.table, self.note)
        self._options: dict[str, Any] = {}  # of the call in progress, without edits of ours

    def note(self, line: str) -> None:
        """Keep a line for the user."""
        self.notes[line] = None

    def lines(self) -> tuple[str, ...]:
        """Return what the user must know of the run."""
        left = len(self.editor.left)
        return (*self.notes, *([LEFT.format(left)] if left else []))

    def sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Start the sampler (SAMPLER_SAMPLE), and once more where a treatment asks for it."""
        guider, sigmas, extra, callback, noise, latent, *rest = args
        self.began = Began(executor.class_obj, sigmas, noise, latent, rest[0] if rest else kwargs.get("denoise_mask"))
        given = dict(extra)  # samplers write into it
        self.calls = 0
        try:
            return executor(*args, **kwargs)
        except Again as again:
            if again.steering is not self:
                raise
        self.calls = 0
        wanted = self.treatment.noise
        noise = noise if wanted is None else wanted.to(noise)
        return executor(guider, sigmas, given, callback, noise, latent, *rest, **kwargs)

    def predict(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Make one model call (PREDICT_NOISE) under the treatment."""
        if not self.treatment.changes:
            self.calls += 1
            return executor(*args, **kwargs)
        watched = self.prepared(past_windows(args, self))
        try:
            return executor(*watched, **kwargs)
        except Again:  # of a guard within: this call does not count
            self.calls -= 1
            raise
        finally:
            self.armed = False

    def prepared(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments of a model call under the treatment."""
        x, sigma, options, *rest = args
        self._options, self.armed = options, bool(self.treatment.guidance)
        edited = self.editor.options(options, self.treatment.edits, self.calls, float(sigma.flatten()[0]))
        self.calls += 1
        return (x, sigma, edited, *rest)

    def capture(self, predictions: list[Tensor], bare: Any, conds: Any, x: Tensor, sigma: Tensor, *_: Any) -> None:
        """Reshape the noise gap of a model call, in its predictions; later ones are perturbed passes (PAG, SAG)."""
        found: dict[str, int] = {}
        for number, each in enumerate(conds):
            role = None if each is None else roles.role_of(each, self.guider)
            found.setdefault(role or "", number)
        if not self.armed or roles.PROMPT not in found:
            return
        self.armed = False
        reference = next((role for role in (roles.PERP_EMPTY, roles.NEGATIVE) if role in found), None)
        if reference is None:
            off = roles.NEGATIVE not in self.guider.conds or len(conds) > 1
            self.note(NO_GUIDANCE if off else TWO_CALLS)
            return
        try:
            cond, uncond = predictions[found[roles.PROMPT]], predictions[found[reference]]
            perp = reference == roles.PERP_EMPTY
            predictions[found[roles.PROMPT]] = self._reshaped(cond, uncond, x, sigma, perp)
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # of ours: the picture goes on with the guidance that it had
            log.warning("%s: %s", type(error).__name__, error)
            self.note(f"guidance was left alone, because of an error: {type(error).__name__}: {error}")
            self.treatment = replace(self.treatment, guidance=())

    def adopt(self, treatment: Treatment) -> None:
        """Take a treatment for the calls that follow. The guider's own lists of this run get its text."""
        conds = self.guider.conds
        if treatment.prompt is not None:
            conds[roles.PROMPT][0] = exchanged(conds[roles.PROMPT], treatment.prompt)
        if treatment.reference is not None and len(conds.get(roles.NEGATIVE, ())) == 1:
            conds[roles.NEGATIVE][0] = exchanged(conds[roles.NEGATIVE], treatment.reference)
        self.treatment = treatment

    def predictor(self, x: Tensor, sigma: Tensor, options: dict[str, Any], step: int = 0) -> Predictor:
        """Return what predicts a model call again; a compiled network would not follow edits and has no gradient."""
        return Predictor(Call(self.guider, x, sigma, eager(options)), self.began, self.editor, self.count, step)

    def _reshaped(self, cond: Tensor, uncond: Tensor, x: Tensor, sigma: Tensor, perp: bool) -> Tensor:
        """Return the denoised prediction with the prompt, its noise gap changed by the treatment's guidance."""
        scale = sigma.float().reshape(-1, *[1] * (x.ndim - 1))
        epsilon = (x.float() - uncond.float()) / scale
        before = gap = (uncond.float() - cond.float()) / scale
        step = self._step(x, sigma, epsilon + gap, epsilon)
        for guidance in self.treatment.guidance:
            gap = guidance(gap, replace(step, cond=epsilon + gap))
        if gap is before:
            return cond
        if perp and not bool(gap.any()):
            gap = before * REST
        moved = (uncond.float() - gap.to(uncond.device) * scale).to(cond)
        images = self.treatment.images
        return moved if images is None else cond.index_copy(0, images.to(cond.device), moved[images])

    def _step(self, x: Tensor, sigma: Tensor, cond: Tensor, uncond: Tensor) -> Step:
        sampling = self.guider.inner_model.model_sampling
        level = float(sigma.flatten()[0])
        count, index = 0, self.calls - 1
        if self.began is not None:
            # a step of its own for each noise level: second-order samplers make several calls within a step
            sigmas = self.began.sigmas
            count = len(sigmas) - 1
            index = max(0, int((sigmas[:-1] * (1 + 1e-4) >= level).sum()) - 1)
        predict = self.predictor(x, sigma, self._options, index)
        cfg = float(getattr(self.guider, "cfg1", getattr(self.guider, "cfg", 1.0)))
        prompt = predict.encoded(roles.PROMPT)
        return Step(index, count, level, model.timestep(sampling, sigma), cfg, predict, prompt, cond, uncond)


@contextmanager
def apart() -> Iterator[None]:
    """Leave ComfyUI's inference mode for the time of the block: what is made here may be optimised."""
    with torch.inference_mode(False), torch.no_grad():
        yield
