"""One sampling run: collects the predictions of its first model calls and turns them into evidence.

Every denoised prediction D becomes (x - D) / sigma: epsilon for epsilon- and v-prediction models in ComfyUI's
coordinates, the velocity for flow models. The gap between two prompts is then (D_uncond - D_cond) / sigma for all.

Part of the ComfyUI host; may import: comfy, torch, memguard's core.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.samplers
from torch import Tensor

from ...attributions.moment import Encoded
from ...detectors.text_noise_norm import gap_map
from ...guard import MemorizationStop, Run
from ...records import Reference, Report, StepEvidence
from ..curve import Curve
from . import model, roles
from .attention import eager
from .calls import TEXT, Call
from .continuing import Place
from .coverage import both, coverage
from .explanation import Explanation, maps
from .mitigating import Mitigating
from .prompts import Prompts
from .reading import Reading
from .steering import Again
from .windows import past_windows


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
        self.reading = Reading(guider, run.guard.attention, explanation)
        self.mitigating = None if prompts is None else Mitigating(run, guider, prompts)
        self._curve = Curve()
        self._against: str | None = None  # the role that the curve compares the prompt with
        self.maps: dict[str, Tensor] = {}  # of the run that is over, [B, h, w], by name
        self.sigmas = sigmas if isinstance(sigmas, Tensor) and len(sigmas) > 1 else None
        self._ending: Tensor | None = None  # the noise gap of the last step, per pixel
        self.calls = 0
        self.armed = False  # whether predictions are being collected now
        self.negative_is_empty = False
        self.from_nothing = False  # whether the latent was empty, so that the run starts from pure noise
        self.predictions: dict[str, tuple[Tensor, Tensor | None]] = {}  # role -> noise, coverage

    def sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Start the sampler; policy "mitigate" may start it once more, from its first call."""
        if self.mitigating is None:
            return executor(*args, **kwargs)
        return self.mitigating.steering.sample(executor, *args, **kwargs)

    def predict(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Make one model call: score it if it is one of the first, follow the noise gap in any case."""
        number = self.calls
        self.calls += 1
        if self.run.reason is not None:  # what took over an earlier pass's verdict may be treated all the same
            treated = args if self.mitigating is None else self.mitigating.prepared(past_windows(args, self))
            return executor(*treated, **kwargs)
        wanted, ends = self.run.wants(self._step(number, args)), self._ends(number, args)
        self.predictions = {}
        watched = past_windows(args, self)
        if len(watched) > 2:
            options = self.reading.begin(wanted, ends, watched[2], watched is not args)
            watched = (*watched[:2], options, *watched[3:])
        if self.mitigating is not None:
            watched = self.mitigating.prepared(watched)
        self.armed = True
        try:
            out = executor(*watched, **kwargs)
        finally:
            self.armed = False
        with self._careful():
            self._look(self._step(number, args), wanted, ends, *args)
        return out

    def _look(self, step: int, wanted: bool, ends: bool, x: Tensor, sigma: Tensor, *rest: Any) -> None:
        """Take what the call that was just made has shown."""
        options = rest[0] if rest else {}
        self.reading.end(x, sigma, options)
        if not wanted and not ends:
            self._follow(sigma)
            return
        evidence = self._evidence(step, wanted, x, sigma, options)
        self._follow(sigma)
        if evidence is None:
            if self.run.earlier is not None:
                self.run.settle()
                self._mitigate(None, x, sigma, options)
            return
        if ends:
            self._ending = gap_map(evidence).cpu()
        if not wanted:
            return
        try:
            self.run.observe(evidence)
        finally:  # policy "stop" ends the run here, and its words matter most
            self._explain(evidence, x, sigma, options)
        self._mitigate(evidence, x, sigma, options)

    def _mitigate(self, evidence: StepEvidence | None, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> None:
        """Under policy "mitigate", mitigate a run that its first call, or an earlier pass, has flagged.

        Raises:
            Again: where the sampler is to start once more.

        """
        if self.mitigating is None or not self.run.to_mitigate:
            return
        same = self.place is not None and self.place.same_prompt
        try:
            self.mitigating.first(evidence, x, sigma, options, self._evidence_of, same)
        except Again:
            self._curve, self.calls = Curve(), 0  # of the run that goes on
            raise

    def _follow(self, sigma: Tensor) -> None:
        """Add this call to the curve."""
        reference = roles.reference(self.predictions, self.run.guard.reference)
        if roles.PROMPT not in self.predictions or reference is None or self._against not in (None, reference):
            return
        self._against = reference
        (cond, one), (uncond, other) = self.predictions[roles.PROMPT], self.predictions[reference]
        self._curve.add(sigma, cond, uncond, both(one, other))

    def _explain(self, evidence: StepEvidence, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> None:
        if self.explanation is None or self.explanation.taken or not self.explanation.wants(self.run.report.flagged):
            return
        conds = self.guider.conds
        reference = conds.get(evidence.roles[1])
        masses = {} if self.reading.reader is None else self.reading.reader.masses
        call = Call(self.guider, x, sigma, eager(options))
        self.explanation.take(call, conds[roles.PROMPT], reference[0] if reference else None, evidence, masses)

    def finish(self) -> Report:
        """Close the run; its noise gap map is that of the last step, where the copied places stand out."""
        run = self.run
        run.extra_rows += self.reading.rows + (self.explanation.rows if self.explanation is not None else 0)
        try:
            run.learn(notes=(*run.report.notes, *(self.mitigating.lines() if self.mitigating is not None else ())))
            run.learn(curve=self._curve.points())
            if self.explanation is not None:
                run.learn(attribution=self.explanation.words())
            self.maps = self._maps()
            run.learn(maps=tuple(self.maps))
        except Exception as error:
            run.learn(notes=(*run.report.notes, f"no words or maps, because {error}"))
        report = run.finish()
        return report if self._ending is None else replace(report, noise_gap_map=self._ending)

    def _maps(self) -> dict[str, Tensor]:
        """Return the maps of the run, float32 [B, h, w] on the CPU, by name."""
        report, reader = self.run.report, self.reading.reader
        gap = report.noise_gap_map if self._ending is None else self._ending
        found = {} if gap is None else {"noise_gap": gap.float()}
        if report.attribution is not None and reader is not None and gap is not None:
            found |= maps(reader, report.attribution.spans, (gap.shape[-2], gap.shape[-1]))
        return found

    def _step(self, number: int, args: tuple[Any, ...]) -> int:
        """Return the step that a model call belongs to: its number, unless late steps count."""
        sigma = args[1] if len(args) > 1 else None
        if number == 0 or not self.run.guard.late or self.sigmas is None or not isinstance(sigma, Tensor):
            return number
        # second-order samplers call the model several times within a step
        reached = self.sigmas[:-1].to(sigma) * (1 + 1e-4) >= sigma.flatten()[0]
        return max(0, int(reached.sum()) - 1)

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
            self.reading.expect(args[1])
        if self.mitigating is None:
            predictions = executor(*args, **kwargs)
        else:
            predictions = self.mitigating.evaluate(self.armed, executor, *args, **kwargs)
        if self.armed:
            self.capture(predictions, *args, **kwargs)
        return predictions

    def capture(self, predictions: list[Tensor], bare: Any, conds: Any, x: Tensor, sigma: Tensor, *rest: Any) -> None:
        """Keep the first prediction of each role; later ones come from perturbed passes (PAG, SAG)."""
        with self._careful():
            for denoised, role_conds in zip(predictions, conds, strict=True):
                role = None if role_conds is None else roles.role_of(role_conds, self.guider)
                if role is None or role in self.predictions:
                    continue
                # now, not later: functions after the guidance may write into these tensors
                noise = (x.float() - denoised.float()) / sigma.float().reshape(-1, *[1] * (x.ndim - 1))
                self.predictions[role] = (noise, coverage(role_conds, x, sigma))
            if self.mitigating is not None:
                self.mitigating.capture(predictions, bare, conds, x, sigma, *rest)

    def _evidence(self, step: int, spend: bool, x: Tensor, sigma: Tensor, options: Any = None) -> Any:
        want = self.run.guard.reference
        if spend:
            self._spend_extra_rows(want, x, sigma, options or {})
        if roles.PROMPT not in self.predictions:
            self.run.unavailable(
                "the sampler made a call without the positive prompt"
                if roles.PROMPT in self.guider.conds
                else roles.why_missing(self.guider)
            )
            return None
        reference = roles.reference(self.predictions, want)
        if reference is None:
            self.run.unavailable(roles.why_missing(self.guider))
            return None
        found = {role: noise for role, (noise, _) in self.predictions.items()}
        covered = both(self.predictions[roles.PROMPT][1], self.predictions[reference][1])
        summary = self.explanation.summary() if self.explanation and self.run.guard.late else None
        read = self.reading.evidence(summary)
        return replace(self._evidence_of(step, sigma, found, reference, covered), **read)

    def _evidence_of(
        self, step: int, sigma: Tensor, noise: dict[str, Tensor], reference: str, covered: Tensor | None
    ) -> StepEvidence:
        """Return predictions by role, in units of epsilon, as evidence."""
        sampling = self.guider.inner_model.model_sampling
        return StepEvidence(
            step=step,
            num_steps=self.run.report.steps or 0,
            sigma=float(sigma[0]),
            sigma_max=float(sampling.sigma_max),
            timestep=model.timestep(sampling, sigma),
            noise_cond=_as_picture(noise[roles.PROMPT]),
            noise_uncond=_as_picture(noise[reference]),
            coverage=None if covered is None else _as_picture(covered),
            parameterization=model.parameterization(sampling),
            family=self.run.report.family,
            reference=self._label(reference),
            roles=(roles.PROMPT, reference),
            full_noise=True if self.from_nothing else None,
            prompts=self._several(len(noise[roles.PROMPT])),
        )

    def _several(self, images: int) -> tuple[int, ...]:
        """Return the number of each image's prompt, where the prompt's conditioning has a row of its own for each."""
        parts = self.guider.conds[roles.PROMPT]
        text = parts[0]["model_conds"].get(TEXT) if len(parts) == 1 else None
        if text is None or len(text.cond) != images:
            return ()
        numbers = Encoded(text.cond).prompts()
        return numbers if any(numbers) else ()

    def _label(self, reference: str) -> Reference:
        """Return what the prompt was compared with; asked for the empty prompt, the negative one may be just that."""
        if reference != roles.NEGATIVE:
            return "empty"
        asked = self.run.guard.reference == "empty"
        return "empty" if asked and (self.negative_is_empty or self.run.report.negative_prompt == "") else "negative"

    def _spend_extra_rows(self, want: Reference, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> None:
        """Under reference "empty", evaluate the reference prompt if the sampler did not."""
        conds = self.guider.conds
        if want != "empty" or roles.reference(self.predictions, want) == roles.EMPTY:
            return
        if roles.EMPTY in conds and roles.PERP_EMPTY not in self.predictions:
            role = roles.EMPTY
        elif roles.NEGATIVE in conds and roles.reference(self.predictions, want) is None:
            role = roles.NEGATIVE
        else:
            return
        self.armed = True
        try:
            comfy.samplers.calc_cond_batch(self.guider.inner_model, [conds[role]], x, sigma, options)
        finally:
            self.armed = False
        self.run.extra_rows += len(x)

    @contextmanager
    def _careful(self) -> Iterator[None]:
        """Keep an error of ours from costing the picture; policy "stop" and a pressed stop button end the run."""
        try:
            yield
        except (MemorizationStop, comfy.model_management.InterruptProcessingException):
            raise
        except Exception as error:
            self.run.failed(error)


def _as_picture(values: Tensor) -> Tensor:
    """Return [B, C, h, w]: sound has one axis less, video's frames lie below each other."""
    if values.ndim == 3:
        return values.unsqueeze(2)
    return values if values.ndim == 4 else values.flatten(2, -2)
