"""A mitigation applied to every run of a model, memorized or not: what the mitigation nodes do without a MemGuard node.

Its wrappers stand outside those of a MemGuard node on the same model, whichever came first: MemGuard then scores the
run as it is treated, and before guidance is changed, since a score is about predictions and not about their use.

Part of the ComfyUI host; may import: comfy, torch, memguard's core.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

import comfy.model_management
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...mitigations.base import Mitigation, Treatment
from ...troubles import in_words
from . import roles
from .prompts import UNCONNECTED, Prompts, behind
from .starting import start
from .steering import ODD, Again, Steering, apart

KEY = "memguard_treatment"
KINDS = (
    WrappersMP.OUTER_SAMPLE,
    WrappersMP.SAMPLER_SAMPLE,
    WrappersMP.PREDICT_NOISE,
    WrappersMP.CALC_COND_BATCH,
)

log = logging.getLogger("memguard")

# The runs in progress, one per treater, innermost last.
_running: ContextVar[tuple[_Treated, ...]] = ContextVar("memguard_treated", default=())


def lines() -> tuple[str, ...]:
    """Return what treaters did to the innermost run in progress, for the report of a guard that watches it."""
    stack = _running.get()
    return tuple(line for each in stack if each.guider is stack[-1].guider for line in each.lines())


class Treater:
    """One mitigation on one or more models; its wrappers travel along when later nodes clone the model.

    Args:
        mitigation: what to apply; at strength 0 nothing is installed.
        clip: CLIP that encodes the prompt, for mitigations that must know its tokens or text.

    """

    def __init__(self, mitigation: Mitigation, clip: Any = None) -> None:
        self.mitigation, self.clip = mitigation, clip

    def __deepcopy__(self, memo: dict[int, Any]) -> Treater:
        """A copy of a model is treated by the same mitigation."""
        return self

    def install(self, patcher: Any) -> Any:
        """Return a clone of the model that is treated, on top of what it was treated with before."""
        clone = patcher.clone()
        if self.mitigation.strength == 0:
            return clone
        for kind, wrapper in zip(KINDS, (self._outer, self._sample, self._predict, self._calc), strict=True):
            clone.add_wrapper_with_key(kind, KEY, wrapper)
            others = clone.wrappers[kind]
            clone.wrappers[kind] = {KEY: others[KEY], **others}
        return clone

    def _outer(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        prompts = Prompts(self.clip, behind(), executor.class_obj)
        treated = _Treated(self, executor.class_obj, prompts)
        token = _running.set((*_running.get(), treated))
        try:
            return executor(*args, **kwargs)
        finally:
            _running.reset(token)
            for line in treated.lines():
                log.info("%s", line)

    def _sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        treated = self._now(args[0])
        return executor(*args, **kwargs) if treated is None else treated.steering.sample(executor, *args, **kwargs)

    def _predict(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        treated = self._now(executor.class_obj)
        if treated is None:
            return executor(*args, **kwargs)
        treated.choose(*args)
        return treated.steering.predict(executor, *args, **kwargs)

    def _calc(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        treated = next((each for each in reversed(_running.get()) if each.treater is self), None)
        if treated is None:
            return executor(*args, **kwargs)
        treated.steering.editor.expect(args[1], len(args[2]))
        predictions = executor(*args, **kwargs)
        treated.steering.capture(predictions, *args)
        return predictions

    def _now(self, guider: Any) -> _Treated | None:
        """Return the innermost run of this treater, if it is this guider's."""
        mine = next((each for each in reversed(_running.get()) if each.treater is self), None)
        return mine if mine is not None and mine.guider is guider else None


class _Treated:
    """One run under one treater."""

    def __init__(self, treater: Treater, guider: Any, prompts: Prompts) -> None:
        self.treater, self.guider, self.prompts = treater, guider, prompts
        self.steering = Steering(guider, prompts, lambda rows: None)
        self._chosen = False
        self._said: tuple[str, ...] = ()

    def lines(self) -> tuple[str, ...]:
        """Return what was done, or why nothing was."""
        title = self.treater.mitigation.TITLE
        return tuple(f"{title}: {line}" for line in (*self._said, *self.steering.lines()))

    def choose(self, x: Tensor, sigma: Tensor, options: Any, *_: Any) -> None:
        """Before the first model call, find the treatment of the run.

        Raises:
            Again: where the sampler must start with other noise.

        """
        if self._chosen:
            return
        self._chosen = True
        steering = self.steering
        try:
            treatment = self._treatment(x, sigma, options)
            steering.adopt(treatment)
        except comfy.model_management.InterruptProcessingException:
            raise
        except Exception as error:  # why it cannot act, or an error of ours: the picture goes on without it
            self._leave_out(in_words(error))
            return
        self._said = treatment.notes
        if treatment.noise is not None:
            raise Again(steering)

    def _treatment(self, x: Tensor, sigma: Tensor, options: Any) -> Treatment:
        steering, mitigation, conds = self.steering, self.treater.mitigation, self.guider.conds
        if steering.began is None:
            raise ValueError(ODD)
        if roles.PROMPT not in conds:
            raise ValueError(roles.why_missing(self.guider))
        reference = next((role for role in (roles.NEGATIVE, roles.PERP_EMPTY) if role in conds), None)
        if getattr(self.guider, "cfg1", getattr(self.guider, "cfg", 1.0)) == 1:
            reference = None  # the sampler leaves it out
        with apart():
            began = start(steering.predictor(x, sigma, options), self.prompts, reference, None)
            return mitigation.treat(began, Treatment())

    def _leave_out(self, why: str) -> None:
        log.warning("%s was left out: %s", self.treater.mitigation.TITLE, why)
        self._said = (f"was left out: {why}",)
        if self.prompts.clip is None and "not known" in why:
            self._said = (*self._said, UNCONNECTED)
