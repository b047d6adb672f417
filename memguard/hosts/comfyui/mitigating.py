"""Policy ``mitigate`` in one sampling run: the first call is scored as it is, and made again under what the loop keeps.

Part of the ComfyUI host; may import: comfy, torch, memguard's core.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import comfy.samplers
import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor

from ...aside import aside
from ...detectors.text_noise_norm import NAME as NORM
from ...guard import Run
from ...loop import mitigate, undone
from ...mitigations.base import Treatment, Unsuitable
from ...mitigations.effect import Effect, differ
from ...passes import repeat, takes_over
from ...records import Attempt, StepEvidence
from ...troubles import careful
from . import roles
from .attention import AttentionReader, Unreadable
from .calls import Unknown, rows_of
from .prompts import UNCONNECTED, Prompts
from .starting import exchanged, start
from .steering import ODD, Again, Steering, apart

READ_BEFORE = "attention could not be read again under the mitigation"
EDITED = "an edit of the attention itself is not scored by attention"
CACHED = "another node answers from a cache, so an attempt cannot be scored; take the cache off the model"

ROUNDING = 2 * torch.finfo(torch.float32).eps  # of a sum with the latents, as a share of them
FAR = 1e4  # times that rounding: a noise gap of this size would move visibly with its input
# step, sigma, predictions by role in units of epsilon, role to compare with, coverage
Evidence = Callable[[int, Tensor, dict[str, Tensor], str, "Tensor | None"], StepEvidence]


@dataclass(frozen=True)
class _Made:
    """The first call as it was made under a treatment: denoised predictions by role."""

    treatment: Treatment
    x: Tensor
    denoised: dict[str, Tensor]
    effect: Effect | None = None


class Mitigating:
    """What policy "mitigate" does to one run: nothing, unless its first step is flagged.

    Args:
        run: of the guard.
        guider: of the sampler.
        prompts: what is known of its texts.

    """

    def __init__(self, run: Run, guider: Any, prompts: Prompts) -> None:
        self.run, self.guider, self.prompts = run, guider, prompts
        self.steering = Steering(guider, prompts, self._count, self.careful)
        self._first: _Made | None = None  # the first call as the sampler made it
        self._plain: _Made | None = None  # the same, once the run goes on under a treatment
        self._ready: _Made | None = None  # what the sampler's next call is answered with
        self._level: list[Tensor] | None = None  # the last predictions below our own wrapper
        self._trying = False
        self._adopted = False  # whether the run went on under what was kept, for however long

    def careful(self) -> AbstractContextManager[None]:
        """The guard around each hook: an error of ours ends the treatment."""
        return careful(self._failed, InterruptProcessingException)

    def _failed(self, error: Exception) -> None:
        self.run.failed(error)
        if not self._adopted and any(attempt.kept for attempt in self.run.report.attempts):
            undone(self.run, 0, error)
        self.steering.undo(partial(self._undone, error))

    def _undone(self, error: Exception, calls: int) -> None:
        undone(self.run, calls, error)
        self._ready = self._plain

    def prepared(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments of a model call (PREDICT_NOISE)."""
        return self.steering.prepared(args) if self.steering.treatment.changes else args

    def evaluate(
        self, wanted: bool, executor: Any, model: Any, conds: Any, x: Tensor, *rest: Any, **kwargs: Any
    ) -> Any:
        """Evaluate conditionings (CALC_COND_BATCH); the first call under a mitigation was made already.

        Args:
            wanted: whether the sampler's own predictions are expected.
            executor: the next wrapper, or ComfyUI.
            model: the network; then come the arguments of CALC_COND_BATCH.
            conds: of each role.
            x: noisy latents.
            rest: sigma and model_options.
            kwargs: none as yet.

        """
        found = None
        with self.careful():
            self.steering.editor.expect(conds, len(x))
            found = self._answer(conds, x, *rest) if wanted and self._ready is not None else None
        if found is not None:
            return found
        predictions = executor(model, conds, x, *rest, **kwargs)
        if self._trying or not self.run.evidence:
            with self.careful():
                self._keep(wanted, predictions, conds, x)
        return predictions

    def _keep(self, wanted: bool, predictions: list[Tensor], conds: Any, x: Tensor) -> None:
        """Keep what is predicted below our own wrapper; of the sampler's first call by role."""
        self._level = predictions
        if wanted and self._first is None and not self._trying:
            named = zip(conds, predictions, strict=True)
            known = {roles.role_of(each, self.guider) or "": out.clone() for each, out in named if each is not None}
            self._first = _Made(Treatment(), x, known)

    def first(
        self,
        evidence: StepEvidence | None,
        x: Tensor,
        sigma: Tensor,
        options: Any,
        judged: Evidence,
        same_prompt: bool = True,
    ) -> None:
        """Mitigate a run that its first call has flagged, or an earlier pass whose verdict it took over.

        Args:
            evidence: of the first call; None where it has no score.
            x: noisy latents of the call.
            sigma: of the call.
            options: model_options of the call.
            judged: makes evidence of predictions.
            same_prompt: whether the earlier pass had this run's prompt.

        Raises:
            Again: where the sampler is to start once more.

        """
        steering, made = self.steering, [] if self._first is None else [self._first]
        if steering.began is None:
            self.run.learn(attempts=(Attempt("none", changes=(ODD,)),))
            return
        reference = evidence.roles[1] if evidence is not None else None
        predict = steering.predictor(x, sigma, options)
        own = predict.encoded(roles.PROMPT)
        asked = list(self._first.denoised) if self._first is not None and "" not in self._first.denoised else []
        asked = list(dict.fromkeys([*asked, roles.PROMPT, *([] if reference is None else [reference])]))

        def redo(treatment: Treatment) -> StepEvidence:
            assert evidence is not None and reference is not None
            lists = {role: self._conds(role, treatment) for role in asked}
            call = predict.at(treatment.noise)
            effect = Effect(treatment)
            edited = steering.editor.options(call.options, treatment.edits, 0, evidence.sigma, effect)
            reader = self._reader(treatment, options)
            if reader is not None:
                reader.expect(lists[roles.PROMPT], [asked.index(roles.PROMPT)], call.x)
                edited = reader.options(edited)
            with predict.as_sampled(), aside(call.x):
                whole = comfy.samplers.calc_cond_batch(
                    self.guider.inner_model, list(lists.values()), call.x, call.sigma, edited
                )
            self._count(sum(rows_of(each, call.x, call.sigma) for each in lists.values()))
            # another node's wrapper around ours would have its say once more when the sampler gets them
            found = self._level if self._level is not None and options.get("context_handler") is None else whole
            denoised = dict(zip(asked, (out.clone() for out in found), strict=True))
            made.append(_Made(treatment, call.x, denoised, effect))
            scale = call.sigma.float().reshape(-1, *[1] * (x.ndim - 1))
            noise = {role: (call.x.float() - out.float()) / scale for role, out in denoised.items()}
            moved = treatment.prompt is not None and differ(own.text, treatment.prompt.text)
            first = self._first
            other = first is not None and (moved or not torch.equal(call.x, first.x))
            if first is not None and other and _cached(first, made[-1], reference):
                raise Unsuitable(CACHED)
            again = judged(0, sigma, noise, reference, evidence.coverage)
            if not self.run.guard.attention:
                return again
            if reader is None or len(reader.masses) != 1 or reader.left:
                return replace(again, unread=EDITED if treatment.edits else READ_BEFORE)
            return replace(again, attention=next(iter(reader.masses.values())))

        scored = next((finding for finding in self.run.report.findings if finding.detector == NORM), None)
        self._trying = True
        try:
            with aside(x), apart():
                begun = start(predict, self.prompts, reference, scored)
                if takes_over(self.run):
                    treatment = repeat(self.run, begun, redo if evidence is not None else None, same_prompt)
                else:
                    treatment = mitigate(self.run, begun, redo)
        except Unknown as why:
            self.run.learn(attempts=(Attempt("none", changes=(str(why),)),))
            return
        finally:
            self._trying = False
        lines = " ".join(line for attempt in self.run.report.attempts for line in attempt.changes)
        if self.prompts.clip is None and "not known" in lines:
            steering.note(UNCONNECTED)
        if not treatment.changes:
            return
        if evidence is None:  # the call that was made is made again
            self._count(sum(rows_of(self.guider.conds[role], x, sigma) for role in asked if role in self.guider.conds))
        again = Again(steering)
        ready = next((each for each in reversed(made) if each.treatment.predicts_as(treatment)), None)
        steering.adopt(treatment, self.run.carry(treatment))
        self._adopted = True
        self._ready, self._plain, self._first, self._level = ready, self._first, None, None
        raise again

    def lines(self) -> tuple[str, ...]:
        """Return what the user must know of the run."""
        return self.steering.lines()

    def _reader(self, treatment: Treatment, options: Any) -> AttentionReader | None:
        """Return what reads the attention of a treated call; None where it would not be that of the call."""
        if not self.run.guard.attention or treatment.edits or options.get("context_handler") is not None:
            return None
        if len(self.guider.conds[roles.PROMPT]) != 1:
            return None
        try:
            return AttentionReader(self.guider.inner_model)
        except Unreadable:
            return None

    def _conds(self, role: str, treatment: Treatment) -> list[Any]:
        prompt = {roles.PROMPT: treatment.prompt, roles.NEGATIVE: treatment.reference}.get(role)
        own = self.guider.conds[role]
        return list(own) if prompt is None else [exchanged(own, prompt)]

    def _answer(self, conds: Any, x: Tensor, sigma: Tensor, *_: Any) -> list[Tensor] | None:
        """Return predictions that were made already, each role's once, if they are those that are asked for."""
        ready = self._ready
        assert ready is not None
        asked = [None if each is None else roles.role_of(each, self.guider) or "" for each in conds]
        known = {role: ready.denoised.pop(role) for role in asked if role in ready.denoised}
        if torch.equal(x, ready.x) and all(role is None or role in known for role in asked):
            if ready.effect is not None:
                self.steering.effect.join(ready.effect)
            return [torch.zeros_like(x) if role is None else known[role] for role in asked]
        if known:
            self._count(sum(rows_of(each, x, sigma) for each in conds if each is not None))
        return None

    def _count(self, rows: int) -> None:
        self.run.extra_rows += rows


def _cached(before: _Made, after: _Made, reference: str | None) -> bool:
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


def _parts(made: _Made, reference: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return what was predicted with the prompt, what that takes off the input, and the gap, [B, C, h, w] each."""
    cond, uncond = made.denoised[roles.PROMPT].float(), made.denoised[reference].float()
    return cond, made.x.float() - cond, cond - uncond
