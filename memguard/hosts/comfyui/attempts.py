"""memguard.sampling in ComfyUI: the first model call is made again whole, with all roles that the sampler asked for.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ... import host, sampling
from ...aside import aside
from ...attributions.moment import Encoded
from ...host import Role
from ...mitigations.base import Start, Treatment, Unsuitable
from ...mitigations.effect import Effect, differ
from ...run import Run
from ...sampling import Unwatched
from . import roles
from .attention import AttentionReader, Unreadable
from .calls import Call, rows_of
from .evaluation import Evaluation, Texts, exchanged
from .prompts import Prompts

READ_BEFORE = "attention could not be read again under the mitigation"
EDITED = "an edit of the attention itself is not scored by attention"
CACHED = "another node answers from a cache, so an attempt cannot be scored; take the cache off the model"

ROUNDING = 2 * torch.finfo(torch.float32).eps  # of a sum with the latents, as a share of them
FAR = 1e4  # times that rounding: a noise gap of this size would move visibly with its input


@dataclass(frozen=True)
class Answer:
    """A first call: noisy latents, and denoised predictions by role, which the sampler is answered with."""

    x: Tensor
    denoised: dict[str, Tensor]
    effect: Effect | None = None


@dataclass(frozen=True, kw_only=True)
class Remade(sampling.Made):
    """The first call as it was made under a treatment."""

    answer: Answer


class Sampling(sampling.Sampling):
    """A run as far as mitigations need it.

    Args:
        run: of the guard, or Unwatched.
        call: a model call of the run.
        prompts: what is known of its texts.

    """

    def __init__(self, run: Run | Unwatched, call: Evaluation, prompts: Prompts) -> None:
        cancelled = comfy.model_management.throw_exception_if_processing_interrupted
        super().__init__(run, call, Texts(prompts, call), cancelled=cancelled)
        self._steps = 0 if call.began is None else len(call.began.sigmas) - 1

    def start(self, call: host.Call) -> Start:
        """Return what mitigations get of the first call: the negative prompt is not always what it is compared with."""
        assert isinstance(call, Evaluation)
        began, own = super().start(call), call.call.guider.conds.get(roles.NEGATIVE)
        if call.roles.get("negative") in (None, roles.NEGATIVE) or not own:
            return began
        return replace(began, negative=call.call.encoded(own[0]))

    def count(self) -> int:
        """Return how many steps the sampler makes; 0 where it is not known how it was started."""
        return self._steps

    def _predict(self, call: host.Call, role: Role, prompt: Encoded, x: Tensor) -> Tensor:
        assert isinstance(call, Evaluation)
        made = call.predict(role, prompt, x)
        self.run.extra_rows += call.cost
        return made


class Attempts(Sampling):
    """The same of a run that is scored, for the time of its first call.

    Args:
        run: of the guard.
        call: the first one.
        prompts: what is known of its texts.
        first: what the sampler was answered with; None where that is not known.
        level: returns what was predicted last below MemGuard's own wrapper, None where it was not seen.

    """

    def __init__(
        self,
        run: Run,
        call: Evaluation,
        prompts: Prompts,
        first: Answer | None,
        level: Callable[[], list[Tensor] | None],
    ) -> None:
        super().__init__(run, call, prompts)
        self.watched, self.answered, self.level = run, first, level
        known = [] if first is None or "" in first.denoised else first.denoised
        self.asked = list(dict.fromkeys([*known, *call.roles.values()]))

    def made(self, call: host.Call, treatment: Treatment) -> Remade:
        """Make the first call again under a treatment.

        Raises:
            Unsuitable: where it is answered from a cache.

        """
        assert isinstance(call, Evaluation)
        own, guider = call.call, call.call.guider
        lists = {role: _conds(guider, role, treatment) for role in self.asked}
        x = call.x if treatment.noise is None else call.latents(treatment.noise)
        effect = Effect(treatment)
        options = call.editor.options(own.options, treatment.edits, 0, call.level.sigma, effect)
        windows = own.options.get("context_handler") is not None
        reader = None if windows else self._reader(guider, treatment)
        if reader is not None:
            reader.expect(lists[roles.PROMPT], [self.asked.index(roles.PROMPT)], x)
            options = reader.options(options)
        with call.as_sampled(), aside(x):
            whole = comfy.samplers.calc_cond_batch(guider.inner_model, list(lists.values()), x, own.sigma, options)
        self.run.extra_rows += sum(rows_of(each, x, own.sigma) for each in lists.values())
        # another node's wrapper around ours would have its say once more when the sampler gets them
        level = None if windows else self.level()
        found = whole if level is None else level
        denoised = dict(zip(self.asked, (out.clone() for out in found), strict=True))
        answer, at = Answer(x, denoised, effect), Call(guider, x, own.sigma, own.options)
        before, prompt = self.answered, treatment.prompt
        moved = prompt is not None and differ(call.given["prompt"].text, prompt.text)
        other = before is not None and (moved or not torch.equal(x, before.x))
        if before is not None and other and _cached(before, answer, call.roles["negative"]):
            raise Unsuitable(CACHED)
        predicted = {role: at.noise(denoised[name]) for role, name in call.roles.items()}
        return Remade(predicted, effect, self._attention(reader, treatment), answer=answer)

    def _reader(self, guider: Any, treatment: Treatment) -> AttentionReader | None:
        """Return what reads the attention of a treated call; None where it would not be that of the call."""
        if not self.watched.guard.attention or treatment.edits or len(guider.conds[roles.PROMPT]) != 1:
            return None
        try:
            return AttentionReader(guider.inner_model)
        except Unreadable:
            return None

    def _attention(self, reader: AttentionReader | None, treatment: Treatment) -> dict[str, Any]:
        """Return fields of StepEvidence."""
        if not self.watched.guard.attention:
            return {}
        if reader is None or len(reader.masses) != 1 or reader.left:
            return {"unread": EDITED if treatment.edits else READ_BEFORE}
        return {"attention": next(iter(reader.masses.values()))}


def _conds(guider: Any, role: str, treatment: Treatment) -> list[Any]:
    """Return what a role is conditioned on under a treatment."""
    prompt = {roles.PROMPT: treatment.prompt, roles.NEGATIVE: treatment.reference}.get(role)
    own = guider.conds[role]
    return list(own) if prompt is None else [exchanged(own, prompt)]


def _cached(before: Answer, after: Answer, reference: str | None) -> bool:
    """Whether other input was answered with the same output: something keeps results of earlier calls.

    A cache keeps what the network gives out, or what it adds to its input; then the noise gap stays.
    """
    if reference is None or not {roles.PROMPT, reference} <= before.denoised.keys() & after.denoised.keys():
        return False
    (cond, added, gap), (cond_after, added_after, gap_after) = (_parts(each, reference) for each in (before, after))
    rounding = ROUNDING * torch.maximum(before.x.abs(), cond.abs()).float()
    output = bool(cond.any()) and torch.equal(cond, cond_after)
    difference = bool(added.any()) and bool(((added - added_after).abs() <= rounding).all())
    known = float(gap.norm()) > FAR * float(rounding.norm())
    return output or difference or (known and bool(((gap - gap_after).abs() <= rounding).all()))


def _parts(made: Answer, reference: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return what was predicted with the prompt, what that takes off the input, and the gap, [B, C, h, w] each."""
    cond, uncond = made.denoised[roles.PROMPT].float(), made.denoised[reference].float()
    return cond, made.x.float() - cond, cond - uncond
