"""What policy ``mitigate`` does to a run, whatever the host: the first call made again, the later ones guided.

A host gives a ``Call`` for each of its model calls (memguard.host); how the sampler goes on is the host's own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .attributions.moment import Encoded
from .calibration import ordinary
from .detectors.text_noise_norm import NAME as NORM
from .host import Call, Network, Role, Texts
from .loop import mitigate
from .mitigations.base import Start, Step, Treatment, View
from .mitigations.effect import Effect
from .passes import repeat, takes_over
from .records import Report, StepEvidence
from .run import Run

SAME = "the prompt and what it is compared with are the same, so there is nothing to score"

Read = Callable[[Treatment, Encoded, Callable[[], Tensor]], tuple[Tensor, dict[str, Any]]]


@dataclass(frozen=True)
class Made:
    """The first call, made again under a treatment.

    Attributes:
        predicted: of each role, [B, C, h, w].
        effect: what the treatment has changed in the call.
        attention: fields of StepEvidence: what was read in the call, or why nothing was.

    """

    predicted: Mapping[Role, Tensor]
    effect: Effect
    attention: dict[str, Any] = field(default_factory=dict)


class Unwatched:
    """In the place of a Run: a mitigation is applied whatever is scored, and no report is made.

    Args:
        **facts: of the Report that mitigations may ask.

    """

    def __init__(self, **facts: Any) -> None:
        self.report, self.extra_rows, self.carry = Report("", **facts), 0, Effect


def unscored(call: Call, empty: Encoded | None = None) -> str | None:
    """Return why a call has no score, in words for a person; None where it has one.

    Args:
        call: of the run.
        empty: the empty prompt, where the prompt is compared with that and not with the call's own negative prompt.

    """
    other = call.given.get("negative") if empty is None else empty.expand(len(call.x))
    if "prompt" not in call.predicted:
        return call.why
    if other is not None and "prompt" in call.given and same(call.given["prompt"], other):
        return SAME
    return call.why if empty is None and "negative" not in call.predicted else None


def same(prompt: Encoded, reference: Encoded) -> bool:
    """Whether what a model is asked with is the same as what that is compared with."""
    pairs = (prompt.text, reference.text), (prompt.pooled, reference.pooled)
    return all(a is None or b is None or (a.shape == b.shape and torch.equal(a, b.to(a))) for a, b in pairs)


class Sampling:
    """One run, as far as mitigations need it.

    Args:
        run: of the guard; Unwatched has a start and guidance, and neither evidence nor a first call made again.
        network: of the run.
        texts: of the run.
        empty: what every prompt is compared with, one row; None is the run's own negative prompt.
        read: predicts by its last argument and reads attention meanwhile; None where nobody asks for attention.
        cancelled: raises what ends the run, if the user pressed stop.

    """

    def __init__(
        self,
        run: Run | Unwatched,
        network: Network,
        texts: Texts,
        empty: Encoded | None = None,
        read: Read | None = None,
        cancelled: Callable[[], None] = lambda: None,
    ) -> None:
        self.run, self.network, self.texts = run, network, texts
        self.empty, self.read, self.cancelled = empty, read, cancelled

    def first(self, call: Call, same_prompt: bool = True) -> tuple[Treatment, Made | None]:
        """Return the treatment of a flagged run, and its first call as it is predicted under it, where that changed.

        Args:
            call: by which the run was flagged, or an earlier pass whose verdict it took over.
            same_prompt: whether that earlier pass had this run's prompt.

        """
        assert isinstance(self.run, Run)
        run, tried = self.run, list[tuple[Treatment, Made]]()

        def redo(treatment: Treatment) -> StepEvidence:
            made = self.made(call, treatment)
            tried.append((treatment, made))
            other = made.predicted["negative"] if self.empty is None else self.compared(call, treatment)
            unread = {"attention": None, "summary": None, "unread": ""}
            first = run.evidence[0]
            return replace(first, noise_cond=made.predicted["prompt"], noise_uncond=other, **unread | made.attention)

        with torch.inference_mode(False), torch.no_grad():
            if takes_over(run):
                treatment = repeat(run, self.start(call), redo if run.evidence else None, same_prompt)
            else:
                treatment = mitigate(run, self.start(call), redo)
        found = (made for other, made in reversed(tried) if other.predicts_as(treatment))
        return treatment, next(found, None)

    def made(self, call: Call, treatment: Treatment) -> Made:
        """Make a call again under a treatment."""
        effect, x = Effect(treatment), _latents(call, treatment)
        effect.changed("noise", call.x, x)
        given = treated(call.given, treatment, effect)

        def prompt() -> Tensor:
            return self._predict(call, "prompt", given["prompt"], x)

        with self.network.following(treatment.edits, call, effect):
            cond, attention = (prompt(), {}) if self.read is None else self.read(treatment, given["prompt"], prompt)
        return Made(
            {"prompt": cond, "negative": self._predict(call, "negative", given["negative"], x)}, effect, attention
        )

    def compared(self, call: Call, treatment: Treatment | None = None) -> Tensor:
        """Return what a call, under a treatment, predicts with the empty prompt, [B, C, h, w]."""
        assert self.empty is not None
        x = call.x if treatment is None else _latents(call, treatment)
        with torch.no_grad():
            return self._predict(call, "prompt", self.empty.expand(len(x)), x)

    def evidence(self, call: Call, step: int, prompts: tuple[int, ...], **attention: Any) -> StepEvidence:
        """Return the evidence of a call that is scored: ``unscored`` finds no reason against it.

        Args:
            call: of the run.
            step: its number.
            prompts: number of each image's prompt, where the batch holds several.
            **attention: fields of StepEvidence.

        """
        assert isinstance(self.run, Run)
        report = self.run.report
        return StepEvidence(
            step=step,
            num_steps=self.run.count or self.count(),
            noise_cond=call.predicted["prompt"],
            noise_uncond=call.predicted["negative"] if self.empty is None else self.compared(call),
            coverage=call.coverage,
            family=report.family,
            reference=self.run.guard.reference,
            prompts=prompts,
            layout=call.layout,
            **asdict(call.level) | attention,
        )

    def start(self, call: Call) -> Start:
        """Return what mitigations get of the first call."""
        report, prompt = self.run.report, call.given["prompt"]
        scored = next((finding for finding in report.findings if finding.detector == NORM), None)
        usual = (
            (scored.threshold, scored.typical)
            if scored
            else ordinary(report.model, call.level.sigma, call.layout.size(call.x))
        )
        table = self.texts.table(prompt.text.shape[1])
        return Start(
            prompt=prompt,
            reference=call.given.get("negative") if self.empty is None else self.empty.expand(len(call.x)),
            negative=call.given.get("negative"),
            noise=call.noise,
            size=tuple(call.x.shape[1:]),
            predict=self._predictor(call),
            groups=None if table is None else table.to(prompt.text.device),
            texts=self.texts.known,
            encode=self.texts.encode,
            widths=self.network.widths,
            model=report.model,
            eos_padded=self.texts.eos_padded(prompt.text.shape[-1]),
            family=report.family,
            sigma=call.level.sigma,
            threshold=usual[0],
            typical=usual[1],
            gradients=self.network.gradients,
            word=None if self.texts.word(0) is None else lambda number: str(self.texts.word(number)),
            cancelled=self.cancelled,
        )

    def guided(self, call: Call, index: int, effect: Effect) -> Tensor | None:
        """Return the prediction that leads to the noise gap of a treatment's guidance; None where that changes nothing.

        Args:
            call: of a treated run.
            index: its number, 0 for the first.
            effect: of the treatment; is told once the prediction is in its place (``Effect.written``).

        """
        cond, uncond = call.predicted["prompt"], call.predicted["negative"]
        level, count, layout = call.level, self.count(), call.layout
        predict, prompt = self._predictor(call), call.given["prompt"]
        with torch.inference_mode(False), torch.no_grad():
            step = Step(index, count, level.sigma, level.timestep, call.scale, predict, prompt, cond, uncond, layout)
            before = cond - uncond
            gap = effect.guided(before, step)
            return None if gap is before else uncond + gap

    def count(self) -> int:
        """Return how many steps the run has; 0 where the host cannot tell."""
        return self.run.report.steps or 0

    def _predictor(self, call: Call) -> Callable[[View], Tensor]:
        def predict(view: View) -> Tensor:
            x = call.x if view.noise is None else call.latents(view.noise)
            with self.network.following(view.edits, call):
                return self._predict(call, "prompt", view.prompt, x)

        return predict

    def _predict(self, call: Call, role: Role, prompt: Encoded, x: Tensor) -> Tensor:
        self.run.extra_rows += len(x)
        return call.predict(role, prompt, x)


def treated(given: Mapping[Role, Encoded], treatment: Treatment, effect: Effect | None = None) -> dict[Role, Encoded]:
    """Return what a call is conditioned on under a treatment; ``effect`` is told of what differs."""
    given = dict(given)
    for role, part, other in (
        ("prompt", "prompt", treatment.prompt),
        ("negative", "reference", treatment.reference),
    ):
        own = given.get(role)  # type: ignore[call-overload]
        if other is None or own is None:
            continue
        pooled = own.pooled if other.pooled is None or own.pooled is None else other.pooled.to(own.pooled)
        made = Encoded(other.text.to(own.text), pooled)
        given[role] = made  # type: ignore[index]
        if effect is not None:
            effect.changed(part, own.text, made.text)
            if own.pooled is not None and made.pooled is not None:
                effect.changed(part, own.pooled, made.pooled)
    return given


def _latents(call: Call, treatment: Treatment) -> Tensor:
    return call.x if treatment.noise is None else call.latents(treatment.noise, treatment.images)
