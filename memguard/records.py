"""The values that cross rooms. Frozen dataclasses; tensors live in ``StepEvidence`` only.

May import: torch and the standard library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from torch import Tensor

SCHEMA = 1  # of Report.to_json

Policy = Literal["observe", "warn", "stop", "mitigate"]
Verdict = Literal["ordinary", "suspicious", "memorized", "unknown"]
Reference = Literal["negative", "empty"]
Parameterization = Literal["epsilon", "flow_velocity"]

POLICIES: tuple[Policy, ...] = ("observe", "warn", "stop", "mitigate")
REFERENCES: tuple[Reference, ...] = ("negative", "empty")
# from harmless to grave; "unknown" is not on the scale
VERDICTS: tuple[Verdict, ...] = ("ordinary", "suspicious", "memorized")
FLAGGED: frozenset[Verdict] = frozenset({"suspicious", "memorized"})


@dataclass(frozen=True)
class StepEvidence:
    """What a host saw at one model call of one sampling run.

    Attributes:
        step: index of the model call, 0 for the first.
        num_steps: number of sampling steps of the run; 0 where the host cannot tell.
        sigma: noise level in the variance-exploding scale, sqrt((1 - alpha_bar) / alpha_bar); for flow models in 0..1.
        sigma_max: the model's largest sigma.
        timestep: the same on the 1000-step training schedule, where the model has one.
        noise_cond: prediction with the prompt, [B, C, h, w], in units of epsilon; of the velocity for flow models.
        noise_uncond: prediction of the same rows with the reference prompt, [B, C, h, w].
        coverage: where both prompts act, bool [B or 1, 1, h, w]; None means everywhere.
        parameterization: "epsilon" (also for v-prediction, converted) or "flow_velocity".
        family: "sd15", "sd2", "sdxl", "sd3", "flux" or "other".
        reference: what ``noise_uncond`` was conditioned on.
        roles: the host's names of the two conditionings.
        full_noise: whether the run started from pure noise, where the host knows; None lets ``sigma`` tell. Schedules
            of few steps start well below ``sigma_max`` and from pure noise all the same.

    """

    step: int
    num_steps: int
    sigma: float
    sigma_max: float
    timestep: float | None
    noise_cond: Tensor
    noise_uncond: Tensor
    coverage: Tensor | None = None
    parameterization: Parameterization = "epsilon"
    family: str = "other"
    reference: Reference = "negative"
    roles: tuple[str, str] = ("positive", "negative")
    full_noise: bool | None = None


@dataclass(frozen=True)
class Finding:
    """What one detector says of one run.

    Attributes:
        detector: its name.
        scores: one number per image, mean over the scored steps.
        rms: the same scores per latent element, which is what thresholds use.
        per_step: one list per scored step, each with one number per image.
        unit: what the scores measure.
        status: "ok", or the reason why there is no score.
        reference: "negative" or "empty"; what the prompt was compared with.
        sigma: noise level of the first scored step.
        timestep: the same on the training schedule.
        zscore: distance from ordinary prompts, in standard deviations of the log score; None without a profile.
        percentile: share of ordinary prompts that score lower, 0..100; None without a profile.
        threshold: RMS from which the verdict is at least "suspicious".
        threshold_source: where the threshold comes from, or why there is none.
        verdict: "ordinary", "suspicious", "memorized" or "unknown".

    """

    detector: str
    scores: tuple[float, ...] = ()
    rms: tuple[float, ...] = ()
    per_step: tuple[tuple[float, ...], ...] = ()
    unit: str = ""
    status: str = "ok"
    reference: Reference = "negative"
    sigma: float | None = None
    timestep: float | None = None
    zscore: float | None = None
    percentile: float | None = None
    threshold: float | None = None
    threshold_source: str = "uncalibrated"
    verdict: Verdict = "unknown"

    @property
    def score(self) -> float | None:
        """Mean score over the images, or None where there is no score."""
        return math.fsum(self.scores) / len(self.scores) if self.scores else None

    @property
    def mean_rms(self) -> float | None:
        """Mean RMS over the images, or None where there is no score."""
        return math.fsum(self.rms) / len(self.rms) if self.rms else None


@dataclass(frozen=True)
class TokenSpan:
    """One word of a prompt and the token columns that carry it; BOS, EOS and padding are spans of their own."""

    text: str
    columns: tuple[int, ...]
    group: Literal["word", "bos", "eos", "padding"] = "word"


@dataclass(frozen=True)
class Attribution:
    """How much each word contributes, and where in the picture."""

    method: str
    spans: tuple[TokenSpan, ...]
    weights: tuple[float, ...]
    status: str = "ok"


@dataclass(frozen=True)
class NeuronSet:
    """Value neurons of cross-attention layers: layer name -> sorted indices."""

    indices: dict[str, tuple[int, ...]]
    scale: float = 0.0
    model: str = ""
    provenance: str = ""


@dataclass(frozen=True)
class Report:
    """Everything that is known of one sampling run. ``to_json`` is the format that all screens read."""

    run: str
    host: str = ""
    host_version: str = ""
    memguard_version: str = ""
    model: str = ""
    family: str = "other"
    prompt: str | None = None
    negative_prompt: str | None = None
    seeds: tuple[int, ...] = ()
    sampler: str | None = None
    steps: int | None = None
    cfg: float | None = None
    width: int | None = None
    height: int | None = None
    policy: Policy = "observe"
    findings: tuple[Finding, ...] = ()
    attribution: Attribution | None = None
    actions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None
    scores_before: tuple[float, ...] = ()
    scores_after: tuple[float, ...] = ()
    seconds: float = 0.0
    extra_rows: int = 0
    created: str = ""
    noise_gap_map: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def verdict(self) -> Verdict:
        """The gravest verdict of all findings; "unknown" where no finding has one."""
        known = [f.verdict for f in self.findings if f.verdict in VERDICTS]
        return max(known, key=VERDICTS.index) if known else "unknown"

    @property
    def flagged(self) -> bool:
        """Whether the run looks memorized or comes close to it."""
        return self.verdict in FLAGGED

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: numbers, strings, lists and dicts. NaN and infinity become None."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "noise_gap_map"}
        values["findings"] = [asdict(finding) for finding in self.findings]
        values["attribution"] = asdict(self.attribution) if self.attribution else None
        return _plain({"schema": SCHEMA, **values, "verdict": self.verdict, "message": message(self)})

    def to_json(self, indent: int | None = None) -> str:
        """Return the report as JSON text with its schema version."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """Build a report from ``to_dict``'s result.

        Raises:
            ValueError: if the schema is not the one that this version of memguard reads.

        """
        schema = values.get("schema")
        if schema != SCHEMA:
            raise ValueError(f"report has schema {schema!r}, this memguard reads {SCHEMA}; update memguard")
        known = {f.name for f in fields(cls)} - {"noise_gap_map"}
        kept = {k: _frozen(v) for k, v in values.items() if k in known}
        kept["findings"] = tuple(Finding(**{k: _frozen(v) for k, v in f.items()}) for f in values.get("findings", ()))
        kept["attribution"] = _attribution(values.get("attribution"))
        return cls(**kept)


def message(report: Report) -> str:
    """Return the one sentence that every screen shows for a report."""
    if report.error and not report.findings:
        return f"MemGuard: no score, because of an error: {report.error}"
    if not report.findings:
        return "MemGuard: no score"
    finding = max(report.findings, key=_gravity)
    if finding.score is None:
        return f"MemGuard: no score, because {finding.status}"
    words = {
        "memorized": "looks memorized",
        "suspicious": "may be memorized",
        "ordinary": "looks ordinary",
        "unknown": "no verdict",
    }
    text = f"MemGuard: {words[finding.verdict]} (score {finding.score:.3g}"
    if finding.percentile is not None:
        text += f", higher than {percent(finding.percentile)} of ordinary prompts)"
    else:
        text += f", {finding.threshold_source})"
    return text


def percent(value: float) -> str:
    """Return a percentile as text that never rounds up to 100 %."""
    return "at least 99.99 %" if value > 99.99 else f"{math.floor(value * 100) / 100:.4g} %"


def _gravity(finding: Finding) -> tuple[int, bool]:
    """Order findings by verdict; of those without one, a score says more than a reason."""
    return (VERDICTS.index(finding.verdict) if finding.verdict in VERDICTS else -1, finding.score is not None)


def _attribution(values: dict[str, Any] | None) -> Attribution | None:
    if values is None:
        return None
    spans = tuple(TokenSpan(**{k: _frozen(v) for k, v in span.items()}) for span in values["spans"])
    return Attribution(values["method"], spans, _frozen(values["weights"]), values["status"])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _frozen(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_frozen(v) for v in value)
    return value
