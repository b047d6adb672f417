"""A mitigation applied to every run of a model, memorized or not: what the mitigation nodes do without a MemGuard node.

Its wrappers stand outside those of a MemGuard node on the same model, whichever came first: MemGuard then scores the
run as it is treated, and before guidance is changed, since a score is about predictions and not about their use.

Part of the ComfyUI host.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from comfy.model_management import InterruptProcessingException
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...aside import aside
from ...mitigations.base import Mitigation, Treatment, Unsuitable
from ...mitigations.effect import NOTHING, Effect
from ...sampling import Unwatched
from ...troubles import Told, careful, in_words
from . import model, roles
from .attempts import Sampling
from .prompts import UNCONNECTED, Prompts, behind
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
        token = _running.set(_running.get())
        treated = None
        try:
            with careful(_lost, InterruptProcessingException):
                treated = _Treated(self, executor.class_obj)
                _running.set((*_running.get(), treated))
            return executor(*args, **kwargs)
        finally:
            _running.reset(token)
            with careful(_lost):
                for line in () if treated is None else treated.lines():
                    log.info("%s", line)

    def _sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        treated = None
        with careful(_lost, InterruptProcessingException):
            treated = self._now(args[0])
        return executor(*args, **kwargs) if treated is None else treated.steering.sample(executor, *args, **kwargs)

    def _predict(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        treated = None
        with careful(_lost, InterruptProcessingException):
            treated = self._now(executor.class_obj)
        if treated is None:
            return executor(*args, **kwargs)
        with treated.careful():
            treated.choose(*args)
        return treated.steering.predict(executor, *args, **kwargs)

    def _calc(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        treated = next((each for each in reversed(_running.get()) if each.treater is self), None)
        if treated is None:
            return executor(*args, **kwargs)
        with treated.careful():
            treated.steering.editor.expect(args[1], len(args[2]))
        predictions = executor(*args, **kwargs)
        treated.steering.capture(predictions, *args)
        return predictions

    def _now(self, guider: Any) -> _Treated | None:
        """Return the innermost run of this treater, if it is this guider's."""
        mine = next((each for each in reversed(_running.get()) if each.treater is self), None)
        return mine if mine is not None and mine.guider is guider else None


def _lost(error: Exception) -> None:
    log.warning("a mitigation was left out: %s", in_words(error), exc_info=error)


class _Treated:
    """One run under one treater."""

    def __init__(self, treater: Treater, guider: Any) -> None:
        self.treater, self.guider = treater, guider
        self.prompts = Prompts(treater.clip, behind(), guider)
        facts = {"model": model.name_of(guider.model_patcher), "family": model.family(guider.model_patcher)}
        self.steering = Steering(guider, self.prompts, Unwatched(**facts), self.careful)
        self._chosen = False
        self._said: tuple[str, ...] = ()

    def careful(self) -> AbstractContextManager[None]:
        """The guard around each hook: the picture goes on without the mitigation, or with what of it was done."""
        return careful(self._leave_out, InterruptProcessingException)

    def lines(self) -> tuple[str, ...]:
        """Return what was done, or why nothing was."""
        title, effect = self.treater.mitigation.TITLE, self.steering.effect
        left = effect.left
        done = [f"{line}: {NOTHING}" if line in left else line for line in effect.treatment.notes]
        return tuple(f"{title}: {line}" for line in (*done, *self._said, *self.steering.lines()))

    def choose(self, x: Tensor, sigma: Tensor, options: Any, *_: Any) -> None:
        """Before the first model call, find the treatment of the run.

        Raises:
            Again: where the sampler must start with other noise.

        """
        if self._chosen:
            return
        self._chosen = True
        steering, again = self.steering, Again(self.steering)
        treatment = self._treatment(x, sigma, options)
        steering.adopt(treatment, Effect(treatment))
        if treatment.noise is not None:
            raise again

    def _treatment(self, x: Tensor, sigma: Tensor, options: Any) -> Treatment:
        steering, mitigation, conds = self.steering, self.treater.mitigation, self.guider.conds
        if steering.began is None:
            raise Unsuitable(ODD)
        if roles.PROMPT not in conds:
            raise Unsuitable(roles.why_missing(self.guider))
        reference = next((role for role in (roles.NEGATIVE, roles.PERP_EMPTY) if role in conds), None)
        if getattr(self.guider, "cfg1", getattr(self.guider, "cfg", 1.0)) == 1:
            reference = None  # the sampler leaves it out
        with aside(x), apart():
            call = steering.evaluation(x, sigma, options, reference)
            return mitigation.treat(Sampling(steering.run, call, self.prompts).start(call), Treatment())

    def _leave_out(self, error: Exception) -> None:
        why = in_words(error)
        trace = None if isinstance(error, Told) else error
        log.warning("%s was left out: %s", self.treater.mitigation.TITLE, why, exc_info=trace)
        self._said = (f"was left out: {why}",)
        if self.prompts.clip is None and "not known" in why:
            self._said = (*self._said, UNCONNECTED)
        self.steering.undo(self._undone)

    def _undone(self, calls: int) -> None:
        if calls:
            self._said = tuple(f"{line} (after {calls} model calls)" for line in self._said[:1])
