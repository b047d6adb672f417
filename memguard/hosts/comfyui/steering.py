"""Carries out a treatment in one sampling run: other noise, text and edits before a model call, another gap after it.

Other noise needs another start: samplers keep the noisy latents to themselves, some scale them first (uni_pc) and some
mix them with a picture, so writing into them would be right for some samplers only. What is the same for all of them is
how they are started (SAMPLER_SAMPLE). So the attempt in progress ends at its first model call, with ``Again``, and the
sampler is started once more, with the noise of the treatment and random numbers of its own from the same seed.

What breaks in a treated run ends its treatment as a whole, since a part of it is another treatment: within the first
call the sampler starts yet again, as if there had been none.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...mitigations.base import Treatment
from ...mitigations.effect import Effect
from ...run import Run
from ...sampling import Unwatched
from . import roles
from .attempts import Sampling
from .attention import Careful
from .began import Began
from .calls import Call, alone, pooled_of, text_of
from .edits import LEFT, Editor
from .evaluation import Evaluation, exchanged
from .prompts import Prompts
from .windows import past_windows

NO_GUIDANCE = "guidance was left alone: the sampler makes no prediction without the prompt to guide away from"
TWO_CALLS = "guidance was left alone: prompt and negative prompt are predicted in two calls, and it needs both in one"
CACHE = "easycache"  # in a run's transformer_options: what core EasyCache and LazyCache keep between calls
REST = 0.01  # of the gap where nothing is to be left of it: PerpNeg's guider divides by its norm
ODD = "the guider starts its sampler in a way of its own, so the run cannot be treated"


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
        run: of the guard, or Unwatched.
        careful: the guard around each hook; it tells ``undo`` of an error.

    Attributes:
        treatment: that the run is under; nothing before ``adopt``.
        effect: what of it has changed a tensor.
        began: what the sampler was started with.
        calls: number of model calls so far.
        armed: whether the predictions of a model call are expected.
        notes: what the user must know, each line once.

    """

    def __init__(self, guider: Any, prompts: Prompts, run: Run | Unwatched, careful: Careful) -> None:
        self.guider, self.prompts, self.run, self.careful = guider, prompts, run, careful
        self.treatment = Treatment()
        self.effect = Effect(self.treatment)
        self.began: Began | None = None
        self.calls = 0
        self.armed = False
        self.notes: dict[str, None] = {}
        self._own: dict[str, Any] = {}  # conditionings whose text was exchanged, by role
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
        given, own = args, args
        with self.careful():
            sigmas, noise, latent, mask = args[1], args[4], args[5], args[6] if len(args) > 6 else None
            mask = kwargs.get("denoise_mask", mask)
            self.began = Began(executor.class_obj, sigmas, noise, latent, mask)
            own = _again(args)
        while True:
            self.calls = 0
            try:
                return executor(*given, **kwargs)
            except Again as again:
                if again.steering is not self:
                    raise
            given = own
            try:
                with self.careful():
                    given = self._moved(_again(own))
            except Again:  # what cannot be restarted with other noise is restarted as it was
                given = own

    def _moved(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments of SAMPLER_SAMPLE with the noise of the treatment, and no cache of the first start."""
        options = args[2]["model_options"].get("transformer_options", {})
        if hasattr(options.get(CACHE), "clone"):
            fresh = options[CACHE].clone()
            options[CACHE] = fresh.prepare_timesteps(self.guider.inner_model.model_sampling)
        wanted = self.treatment.noise
        if wanted is None:
            return args
        noise = wanted.to(args[4])
        self.effect.changed("noise", args[4], noise)
        return (*args[:4], noise, *args[5:])

    def predict(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Make one model call (PREDICT_NOISE) under the treatment."""
        if not self.treatment.changes:
            self.calls += 1
            return executor(*args, **kwargs)
        watched = args
        with self.careful():
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
        number = self.calls
        self.calls += 1
        x, sigma, options, *rest = args
        self._options, self.armed = options, bool(self.treatment.guidance)
        level = float(sigma.flatten()[0])
        edited = self.editor.options(options, self.treatment.edits, number, level, self.effect)
        return (x, sigma, edited, *rest)

    def capture(self, predictions: list[Tensor], bare: Any, conds: Any, x: Tensor, sigma: Tensor, *_: Any) -> None:
        """Reshape the noise gap of a model call, in its predictions; later ones are perturbed passes (PAG, SAG)."""
        with self.careful():
            self._guide(predictions, conds, x, sigma)

    def _guide(self, predictions: list[Tensor], conds: Any, x: Tensor, sigma: Tensor) -> None:
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
        denoised = {role: predictions[found[role]] for role in (roles.PROMPT, reference)}
        predictions[found[roles.PROMPT]] = self._reshaped(denoised, reference, x, sigma)
        self.effect.written()

    def adopt(self, treatment: Treatment, effect: Effect) -> None:
        """Take a treatment for the calls that follow. The guider's own lists of this run get its text."""
        conds, given, told = self.guider.conds, dict[str, Any](), list[tuple[str, Tensor, Tensor]]()
        if treatment.prompt is not None:
            given[roles.PROMPT] = exchanged(conds[roles.PROMPT], treatment.prompt)
            told += _pairs("prompt", conds[roles.PROMPT][0], given[roles.PROMPT])
        if treatment.reference is not None and len(conds.get(roles.NEGATIVE, ())) == 1:
            given[roles.NEGATIVE] = exchanged(conds[roles.NEGATIVE], treatment.reference)
            told += _pairs("reference", conds[roles.NEGATIVE][0], given[roles.NEGATIVE])
        # all of it, or nothing: what can break is behind us
        for role, cond in given.items():
            self._own[role], conds[role][0] = conds[role][0], cond
        self.treatment, self.effect = treatment, effect
        for part, before, after in told:
            effect.changed(part, before, after)

    def undo(self, left: Callable[[int], None]) -> None:
        """Leave the treatment after an error of ours; without one nothing is done.

        Args:
            left: told how many model calls were made under it; 0 where the run starts as if there had been none.

        Raises:
            Again: where that is so.

        """
        if not self.treatment.changes:
            return
        again = Again(self)
        begun = self.calls - 1  # the call in progress is not over
        self.treatment, self.armed = Treatment(), False
        for role, cond in self._own.items():
            self.guider.conds[role][0] = cond
        self._own = {}
        if begun > 0:
            left(begun)
            return
        self.effect = Effect(self.treatment)
        left(0)
        raise again

    def evaluation(
        self,
        x: Tensor,
        sigma: Tensor,
        options: dict[str, Any],
        reference: str | None,
        denoised: dict[str, Tensor] | None = None,
    ) -> Evaluation:
        """Return a model call; a compiled network would not follow edits and has no gradient.

        Args:
            x: noisy latents.
            sigma: noise level of the call.
            options: model_options of the call.
            reference: the role that the prompt is compared with.
            denoised: what was predicted, by role.

        """
        level, index = float(sigma.flatten()[0]), self.calls - 1
        if self.began is not None:
            # a step of its own for each noise level: second-order samplers make several calls within a step
            index = max(0, int((self.began.sigmas[:-1] * (1 + 1e-4) >= level).sum()) - 1)
        call = Call(self.guider, x, sigma, alone(options))
        return Evaluation(call, self.began, self.editor, reference, denoised, index)

    def _reshaped(self, denoised: dict[str, Tensor], reference: str, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the denoised prediction with the prompt, its noise gap changed by the treatment's guidance."""
        cond, uncond = denoised[roles.PROMPT], denoised[reference]
        call = self.evaluation(x, sigma, self._options, reference, denoised)
        moved = Sampling(self.run, call, self.prompts).guided(call, call.step, self.effect)
        if moved is None:
            return cond
        before = call.predicted["negative"]
        gap = moved - before
        if reference == roles.PERP_EMPTY and not bool(gap.any()):
            gap = REST * (call.predicted["prompt"] - before)
        scale = sigma.float().reshape(-1, *[1] * (x.ndim - 1))
        made = (uncond.float() - gap.to(uncond.device) * scale).to(cond)
        images = self.treatment.images
        return made if images is None else cond.index_copy(0, images.to(cond.device), made[images])


def _again(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of SAMPLER_SAMPLE for another start: samplers write into one of them."""
    return (*args[:2], dict(args[2]), *args[3:])


def _pairs(part: str, before: Any, after: Any) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield what a conditioning gives to the model without a treatment and with it."""
    for text in (text_of, pooled_of):
        one, other = text(before), text(after)
        if one is not None and other is not None:
            alike = one.shape[1:] == other.shape[1:] and len(one) == 1
            yield part, one.expand_as(other) if alike else one, other


@contextmanager
def apart() -> Iterator[None]:
    """Leave ComfyUI's inference mode for the time of the block: what is made here may be optimised."""
    with torch.inference_mode(False), torch.no_grad():
        yield
