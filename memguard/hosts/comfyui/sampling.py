"""One sampling run: watches its model calls, scores the first ones and follows the others.

Everything of ours happens around the sampler's own calls and under one guard: what fails is noted, and the call is made
as the sampler asked for it. Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import comfy.samplers
from comfy.model_management import InterruptProcessingException
from torch import Tensor

from ...aside import aside
from ...detectors.text_noise_norm import gap_map
from ...guard import MemorizationStop, Run
from ...records import Report, StepEvidence
from ...steps import Steps
from ...troubles import Told, careful, in_words
from ..curve import Curve
from . import roles, schedule
from .calls import Call, Cond, alone
from .continuing import Place
from .coverage import both
from .explanation import Explanation, maps
from .mitigating import Mitigating
from .predictions import Predictions
from .prompts import Prompts
from .reading import Reading
from .steering import Again
from .windows import past_windows

STEPLESS = "the sampler made no step, so there was nothing to score"
UNSEEN = "the model was called in a way that MemGuard cannot see (guider {})"


class Sampling:
    """A run of the core and the guider that it belongs to."""

    def __init__(
        self,
        run: Run,
        guider: Any,
        sigmas: Any = None,
        explanation: Explanation | None = None,
        prompts: Prompts | None = None,
    ) -> None:
        self.run = run
        self.guider = guider
        self.place: Place | None = None  # among the runs of its prompt id
        self.explanation = explanation
        stops = run.guard.policy == "stop" and run.guard.attention  # what only words and maps need ends no run
        self.reading = Reading(guider, run.guard.attention, explanation, self._careful if stops else None)
        self.seen = Predictions(run, guider)
        self.mitigating = None if prompts is None else Mitigating(run, guider, prompts)
        self._curve = Curve()
        self._against: str | None = None  # the role that the curve compares the prompt with
        self.maps: dict[str, Tensor] = {}  # of the run that is over, [B, h, w], by name
        self.sigmas = sigmas if isinstance(sigmas, Tensor) and len(sigmas) > 1 else None
        self.steps = None if self.sigmas is None else Steps(self.sigmas[:-1].tolist())
        self._ending: Tensor | None = None  # the noise gap of the last step, per pixel
        self.silent: tuple[Cond, ...] = ()  # the parts of the prompt that do not act at the first step
        self.calls = 0
        self.armed = False  # whether predictions are being collected now

    def sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Start the sampler; policy "mitigate" may start it once more, from its first call."""
        if self.mitigating is None:
            return executor(*args, **kwargs)
        return self.mitigating.steering.sample(executor, *args, **kwargs)

    def predict(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Make one model call: score it if it is one of the first, follow the noise gap in any case."""
        try:
            return self._predict(executor, *args, **kwargs)
        except Again as again:
            if self.mitigating is not None and again.steering is self.mitigating.steering:
                self._curve, self.calls = Curve(), 0  # of the run that goes on
            raise

    def _predict(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        number = self.calls
        self.calls += 1
        if self.run.reason is not None and self.mitigating is None:
            return executor(*args, **kwargs)
        wanted = ends = False
        self.seen.found = {}
        watched = args
        with self._careful():
            if self.run.reason is None:  # what took over an earlier pass's verdict may be treated all the same
                wanted, ends = self.run.wants(self._step(number, args)), self._ends(number, args)
            watched = self._watched(args, wanted, ends)
        if self.mitigating is not None:
            with self.mitigating.careful():
                watched = self.mitigating.prepared(watched)
        self.armed = True
        try:
            out = executor(*watched, **kwargs)
        finally:
            self.armed = False
        with self._careful():
            self._look(self._step(number, args), wanted, ends, *args)
        return out

    def _watched(self, args: tuple[Any, ...], wanted: bool, ends: bool) -> tuple[Any, ...]:
        """Return the arguments of a model call that is watched."""
        watched = past_windows(args, self)
        if len(watched) > 2:
            with self._attentive():
                options = self.reading.begin(wanted, ends, watched[2], watched is not args)
                watched = (*watched[:2], options, *watched[3:])
        return watched

    def _look(self, step: int, wanted: bool, ends: bool, x: Tensor, sigma: Tensor, *rest: Any) -> None:
        """Take what the call that was just made has shown."""
        options = rest[0] if rest else {}
        with self._attentive():
            self.reading.end(x, sigma, options)
        if not wanted and not ends:
            self._follow(sigma)
            return
        if wanted and not self.run.evidence:
            self.silent = schedule.silent(self.guider.conds.get(roles.PROMPT, ()), x, sigma)
        evidence = self._evidence(step, wanted, x, sigma, options)
        self._follow(sigma)
        if evidence is None:
            if self.run.earlier is not None:
                self.run.settle()
                self._mitigate(None, x, sigma, options)
            if wanted:
                self.run.insist()
            return
        if ends:
            self._ending = gap_map(evidence).cpu()
        if not wanted:
            return
        try:
            self.run.observe(evidence)
        except MemorizationStop:  # the words of such a run matter most, and its message most of all
            self._explain(evidence, x, sigma, options)
            raise
        self._explain(evidence, x, sigma, options)
        self._mitigate(evidence, x, sigma, options)

    def _mitigate(self, evidence: StepEvidence | None, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> None:
        """Under policy "mitigate", mitigate a run that its first call, or an earlier pass, has flagged."""
        if self.mitigating is None or not self.run.to_mitigate:
            return
        same = self.place is not None and self.place.same_prompt
        with self.mitigating.careful():
            self.mitigating.first(evidence, x, sigma, options, same)

    def _follow(self, sigma: Tensor) -> None:
        """Add this call to the curve."""
        found, reference = self.seen.found, self.seen.reference
        if roles.PROMPT not in found or reference is None or self._against not in (None, reference):
            return
        self._against = reference
        (cond, one), (uncond, other) = found[roles.PROMPT], found[reference]
        self._curve.add(sigma, cond, uncond, both(one, other))

    def _explain(self, evidence: StepEvidence, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> None:
        if self.explanation is None or not self.explanation.wants(self.run.report.flagged):
            return
        # the run has its score, so this costs the words only, under policy "stop" too
        with careful(self._unexplained, InterruptProcessingException):
            conds = self.guider.conds
            reference = conds.get(evidence.roles[1])
            masses = {} if self.reading.reader is None else self.reading.reader.masses
            call = Call(self.guider, x, sigma, alone(options))
            self.explanation.take(call, conds[roles.PROMPT], reference[0] if reference else None, evidence, masses)

    def _unexplained(self, error: Exception) -> None:
        if not isinstance(error, Told):
            self.run.noted(error)
        self.run.learn(notes=(*self.run.report.notes, f"no words or maps, because {in_words(error)}"))

    def over(self) -> None:
        """Under policy "stop", end a run whose sampler is done and that nobody could score.

        Raises:
            MemorizationStop: with the reason.

        """
        if self.calls == 0 and not self.run.evidence:
            stepless = self.sigmas is None
            self.run.unavailable(STEPLESS if stepless else UNSEEN.format(type(self.guider).__name__))
            if stepless:
                return
        self.run.insist()

    def finish(self, keep: Callable[[dict[str, Tensor]], Sequence[str]] | None = None) -> Report:
        """Close the run; its noise gap map is that of the last step, where the copied places stand out.

        Args:
            keep: takes the maps and returns the names of those that it keeps.

        """
        run = self.run
        run.extra_rows += self.reading.rows + (self.explanation.rows if self.explanation is not None else 0)
        try:
            run.learn(notes=(*run.report.notes, *(self.mitigating.lines() if self.mitigating is not None else ())))
            run.learn(curve=self._curve.points())
            if self.explanation is not None:
                run.learn(attribution=self.explanation.words())
            self.maps, missing = self._maps()
            run.learn(maps=tuple(self.maps if keep is None else keep(self.maps)))
            run.learn(notes=(*run.report.notes, *missing))
        except Exception as error:
            self._unexplained(error)
        report = run.finish()
        return report if self._ending is None else replace(report, noise_gap_map=self._ending)

    def _maps(self) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Return the maps of the run, float32 [B, h, w] on the CPU, by name; and what is missing."""
        report, reader = self.run.report, self.reading.reader
        gap = report.noise_gap_map if self._ending is None else self._ending
        found = {} if gap is None else {"noise_gap": gap.float()}
        if report.attribution is None or reader is None or gap is None:
            return found, ()
        more, missing = maps(reader, report.attribution.spans, (gap.shape[-2], gap.shape[-1]))
        return found | more, missing

    def _step(self, number: int, args: tuple[Any, ...]) -> int:
        """Return the step that a model call belongs to: its number, unless late steps count."""
        sigma = args[1] if len(args) > 1 else None
        if number == 0 or not self.run.guard.late or self.steps is None or not isinstance(sigma, Tensor):
            return number
        return self.steps.of(float(sigma.flatten()[0]))

    def _ends(self, step: int, args: tuple[Any, ...]) -> bool:
        """Whether this is a call of the last step; second-order samplers make several, the last below its sigma."""
        sigma = args[1] if len(args) > 1 else None
        if self.run.reason is not None or self.sigmas is None or not isinstance(sigma, Tensor):
            return False
        # steps before could only be asked at the cost of waiting for the device
        return step >= len(self.sigmas) - 2 and float(sigma.flatten()[0]) <= float(self.sigmas[-2]) * (1 + 1e-4)

    def evaluate(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Make one evaluation of conditionings and take what it predicts."""
        if self.armed:
            with self._attentive():
                self.reading.expect(args[1], args[2])
        if self.mitigating is None:
            predictions = executor(*args, **kwargs)
        else:
            predictions = self.mitigating.evaluate(self.armed, executor, *args, **kwargs)
        if self.armed:
            self.capture(predictions, *args, **kwargs)
        return predictions

    def capture(self, predictions: list[Tensor], bare: Any, conds: Any, x: Tensor, sigma: Tensor, *rest: Any) -> None:
        """Take the predictions of an evaluation, and let a treatment change how they are used."""
        with self._careful():
            self.seen.take(predictions, conds, x, sigma)
        if self.mitigating is not None:
            self.mitigating.steering.capture(predictions, bare, conds, x, sigma, *rest)

    def _evidence(self, step: int, spend: bool, x: Tensor, sigma: Tensor, options: Any = None) -> StepEvidence | None:
        if spend:
            self._spend_extra_rows(x, sigma, options or {})
        missing = self.seen.missing()
        if missing is not None:
            self.run.unavailable(missing)
            return None
        summary = self.explanation.summary() if self.explanation and self.run.guard.late else None
        return replace(self.seen.evidence(step, sigma), **self.reading.evidence(summary))

    def _spend_extra_rows(self, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> None:
        """Under reference "empty", evaluate the reference prompt if the sampler did not."""
        conds, have = self.guider.conds, self.seen.found
        if self.run.guard.reference != "empty" or self.seen.reference == roles.EMPTY:
            return
        if roles.EMPTY in conds and roles.PERP_EMPTY not in have:
            role = roles.EMPTY
        elif roles.NEGATIVE in conds and self.seen.reference is None:
            role = roles.NEGATIVE
        else:
            return
        self.armed = True
        try:
            with aside(x):
                comfy.samplers.calc_cond_batch(self.guider.inner_model, [conds[role]], x, sigma, alone(options))
        finally:
            self.armed = False
        self.run.extra_rows += len(x)

    def _attentive(self) -> AbstractContextManager[None]:
        """Return the guard around what reads attention: where no detector asks for it, an error costs the maps only."""
        if self.run.guard.attention:
            return self._careful()
        return careful(self.reading.failed, InterruptProcessingException)

    def _careful(self) -> AbstractContextManager[None]:
        return self.run.careful(InterruptProcessingException)
