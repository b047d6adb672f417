"""Policy ``mitigate`` in one sampling run: the first call is scored as it is, and made again under what the loop keeps.

Part of the ComfyUI host.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor

from ...aside import aside
from ...guard import Run
from ...loop import undone
from ...mitigations.base import Treatment
from ...records import Attempt, StepEvidence
from ...troubles import careful
from . import roles
from .attempts import Answer, Attempts, Remade
from .calls import Unknown, rows_of
from .prompts import UNCONNECTED, Prompts
from .steering import ODD, Again, Steering, apart


class Mitigating:
    """What policy "mitigate" does to one run: nothing, unless its first step is flagged.

    Args:
        run: of the guard.
        guider: of the sampler.
        prompts: what is known of its texts.

    """

    def __init__(self, run: Run, guider: Any, prompts: Prompts) -> None:
        self.run, self.guider, self.prompts = run, guider, prompts
        self.steering = Steering(guider, prompts, run, self.careful)
        self._first: Answer | None = None  # the first call as the sampler made it
        self._plain: Answer | None = None  # the same, once the run goes on under a treatment
        self._ready: Answer | None = None  # what the sampler's next call is answered with
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
            self._first = Answer(x, known)

    def first(
        self, evidence: StepEvidence | None, x: Tensor, sigma: Tensor, options: Any, same_prompt: bool = True
    ) -> None:
        """Mitigate a run that its first call has flagged, or an earlier pass whose verdict it took over.

        Args:
            evidence: of the first call; None where it has no score.
            x: noisy latents of the call.
            sigma: of the call.
            options: model_options of the call.
            same_prompt: whether the earlier pass had this run's prompt.

        Raises:
            Again: where the sampler is to start once more.

        """
        steering, plain = self.steering, self._first
        if steering.began is None:
            self.run.learn(attempts=(Attempt("none", changes=(ODD,)),))
            return
        self._trying = True
        try:
            with aside(x), apart():
                call = steering.evaluation(x, sigma, options, None if evidence is None else evidence.roles[1])
                attempts = Attempts(self.run, call, self.prompts, plain, lambda: self._level)
                treatment, made = attempts.first(call, same_prompt)
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
            conds = self.guider.conds
            self._count(sum(rows_of(conds[role], x, sigma) for role in attempts.asked if role in conds))
        again = Again(steering)
        steering.adopt(treatment, self.run.carry(treatment))
        self._adopted = True
        alike = plain if treatment.predicts_as(Treatment()) else None
        self._ready = made.answer if isinstance(made, Remade) else alike
        self._plain, self._first, self._level = plain, None, None
        raise again

    def lines(self) -> tuple[str, ...]:
        """Return what the user must know of the run."""
        return self.steering.lines()

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
