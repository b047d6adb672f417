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

from ...detectors.text_noise_norm import gap_map
from ...guard import MemorizationStop, Run
from ...records import Reference, Report, StepEvidence
from . import model, roles
from .coverage import both, coverage

HANDLER = "context_handler"


class Sampling:
    """A run of the core and the guider that it belongs to."""

    def __init__(self, run: Run, guider: Any, sigmas: Any = None) -> None:
        self.run = run
        self.guider = guider
        self.sigmas = sigmas if isinstance(sigmas, Tensor) and len(sigmas) > 1 else None
        self._ending: Tensor | None = None  # the noise gap of the last step, per pixel
        self.calls = 0
        self.armed = False  # whether predictions are being collected now
        self.negative_is_empty = False
        self.from_nothing = False  # whether the latent was empty, so that the run starts from pure noise
        self.predictions: dict[str, tuple[Tensor, Tensor | None]] = {}  # role -> noise, coverage

    def predict(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Make one model call and score it if it is one of the first."""
        step = self.calls
        self.calls += 1
        wanted, ends = self.run.wants(step), self._ends(step, args)
        if not wanted and not ends:
            return executor(*args, **kwargs)
        self.predictions = {}
        watched = self._past_windows(args)
        self.armed = True
        try:
            out = executor(*watched, **kwargs)
        finally:
            self.armed = False
        with self._careful():
            evidence = self._evidence(step, wanted, *watched, **kwargs)
            if ends and evidence is not None:
                self._ending = gap_map(evidence).cpu()
            if wanted and evidence is not None:
                self.run.observe(evidence)
        return out

    def finish(self) -> Report:
        """Close the run; its map is that of the last step, where the copied places stand out."""
        report = self.run.finish()
        return report if self._ending is None else replace(report, noise_gap_map=self._ending)

    def _ends(self, step: int, args: tuple[Any, ...]) -> bool:
        """Whether this is a call of the last step; second-order samplers make several, the last below its sigma."""
        sigma = args[1] if len(args) > 1 else None
        if self.run.reason is not None or self.sigmas is None or not isinstance(sigma, Tensor):
            return False
        # steps before could only be asked at the cost of waiting for the device
        return step >= len(self.sigmas) - 2 and float(sigma.flatten()[0]) <= float(self.sigmas[-2]) * (1 + 1e-4)

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

    def _evidence(self, step: int, spend: bool, x: Tensor, sigma: Tensor, options: Any = None, seed: Any = None) -> Any:
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
        cond, cond_coverage = self.predictions[roles.PROMPT]
        uncond, uncond_coverage = self.predictions[reference]
        sampling = self.guider.inner_model.model_sampling
        covered = both(cond_coverage, uncond_coverage)
        return StepEvidence(
            step=step,
            num_steps=self.run.report.steps or 0,
            sigma=float(sigma[0]),
            sigma_max=float(sampling.sigma_max),
            timestep=model.timestep(sampling, sigma),
            noise_cond=_as_picture(cond),
            noise_uncond=_as_picture(uncond),
            coverage=None if covered is None else _as_picture(covered),
            parameterization=model.parameterization(sampling),
            family=self.run.report.family,
            reference=self._label(reference),
            roles=(roles.PROMPT, reference),
            full_noise=True if self.from_nothing else None,
        )

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

    def _past_windows(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments of a model call with a context handler that hands over whole predictions."""
        options = args[2] if len(args) > 2 else {}
        if HANDLER not in options or options[HANDLER] is None:
            return args
        return (*args[:2], {**options, HANDLER: _WholePredictions(options[HANDLER], self)}, *args[3:])

    @contextmanager
    def _careful(self) -> Iterator[None]:
        """Keep an error of ours from costing the picture; policy "stop" and a pressed stop button end the run."""
        try:
            yield
        except (MemorizationStop, comfy.model_management.InterruptProcessingException):
            raise
        except Exception as error:
            self.run.failed(error)


class _WholePredictions:
    """A context handler that collects predictions after the windows were fused; inside, prompts lose their identity."""

    def __init__(self, handler: Any, sampling: Sampling) -> None:
        self._handler = handler
        self._sampling = sampling

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    def execute(self, calc: Any, *args: Any) -> Any:
        armed, self._sampling.armed = self._sampling.armed, False
        try:
            predictions = self._handler.execute(calc, *args)
        finally:
            self._sampling.armed = armed
        if armed:
            self._sampling.capture(predictions, *args)
        return predictions


def _as_picture(values: Tensor) -> Tensor:
    """Return [B, C, h, w]: sound has one axis less, video's frames lie below each other."""
    if values.ndim == 3:
        return values.unsqueeze(2)
    return values if values.ndim == 4 else values.flatten(2, -2)
