"""The values that cross rooms. Frozen dataclasses; tensors live in ``StepEvidence`` only.

May import: torch, memguard.plain (inside functions) and the standard library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # a command that only prints its help does not wait for it
    from torch import Tensor

SCHEMA = 1  # of Report.to_json

Policy = Literal["observe", "warn", "stop", "mitigate"]
Verdict = Literal["ordinary", "suspicious", "memorized", "unknown"]
Reference = Literal["negative", "empty"]
Parameterization = Literal["epsilon", "flow_velocity"]
Group = Literal["word", "bos", "eos", "padding", "pooled"]

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
        attention: cross-attention of the prompt's rows: layer -> mass of each token column, float32 [B, tokens], mean
            over heads and positions, in the order of execution; None where it was not read.
        summary: columns of EOS and padding, bool [B or 1, tokens]; None where the tokens are not known.
        unread: why attention was not read, where a detector asked for it.
        prompts: number of the prompt of each image, where a batch holds several prompts; empty for one prompt.

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
    attention: Mapping[str, Tensor] | None = None
    summary: Tensor | None = None
    unread: str = ""
    prompts: tuple[int, ...] = ()

    def rows(self, rows: slice | Tensor) -> StepEvidence:
        """Return the evidence of some images, by a slice or their numbers."""

        def part(values: Tensor | None) -> Tensor | None:
            return values if values is None or len(values) == 1 else values[rows]

        masses = None if self.attention is None else {name: mass[rows] for name, mass in self.attention.items()}
        import torch

        numbers = torch.tensor(self.prompts)
        return replace(
            self,
            noise_cond=self.noise_cond[rows],
            noise_uncond=self.noise_uncond[rows],
            coverage=part(self.coverage),
            attention=masses,
            summary=part(self.summary),
            prompts=tuple(numbers[rows if isinstance(rows, slice) else rows.cpu()].tolist()) if self.prompts else (),
        )


@dataclass(frozen=True)
class Prescan:
    """What a pre-scan, a first look at a smaller size, says of a prompt by one detector.

    Attributes:
        promoted: whether the prompt was scored at the size of the scan as well.
        height: of the first look, pixels.
        width: pixels.
        score: mean score over its images; None where there is none, which promotes the prompt.
        rms: the same per latent element.
        p_value: (1 + ordinary prompts that score at least as high at that size) / (n + 1).
        below: ordinary prompts that score lower at that size.
        count: ordinary prompts, the n above.

    """

    promoted: bool
    height: int
    width: int
    score: float | None = None
    rms: float | None = None
    p_value: float | None = None
    below: int | None = None
    count: int | None = None


@dataclass(frozen=True)
class Finding:
    """What one detector says of one run.

    Attributes:
        detector: its name.
        scores: one number per image, mean over the scored steps; NaN for an image without one.
        rms: the same scores per latent element, which is what thresholds use.
        per_step: one list per scored step, each with one number per image.
        unit: what the scores measure.
        status: "ok", or the reason why there is no score.
        reference: "negative" or "empty"; what the prompt was compared with.
        sigma: noise level of the first scored step.
        timestep: the same on the training schedule.
        zscore: distance from ordinary prompts, in standard deviations of the log score by a log-normal fit, for
            drawings and comparisons; None without a profile.
        percentile: 100 (1 - p_value), so never more than n of n + 1; None without a profile.
        threshold: RMS above which the verdict is at least "suspicious".
        typical: RMS of the median ordinary prompt; None where it is not known.
        threshold_source: where the threshold comes from, or why there is none.
        verdict: "ordinary", "suspicious", "memorized" or "unknown"; of several prompts in a batch, the gravest one's.
        prompts: number of the prompt of each image, where a batch holds several prompts; empty for one prompt.
        carried: run whose finding this is, where a pass without a verdict took it over; empty for the run's own.
        p_value: (1 + ordinary prompts that score at least as high) / (n + 1); None without a profile.
        below: ordinary prompts that score lower.
        count: ordinary prompts in the profile, the n above.
        rate: share of ordinary prompts, 0..1, that get this verdict or a graver one by mistake; for "ordinary", that
            are flagged.
        rate_bound: for this very profile it is at most this, with 95 % confidence.
        flag_rate: share of ordinary prompts that are flagged by mistake, by this detector looking at one prompt.
        caveat: what limits the verdict or the score, in words; "" where nothing does.
        prescan: what a first look at a smaller size said before; None where there was none.

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
    typical: float | None = None
    threshold_source: str = "uncalibrated"
    verdict: Verdict = "unknown"
    prompts: tuple[int, ...] = ()
    carried: str = ""
    p_value: float | None = None
    below: int | None = None
    count: int | None = None
    rate: float | None = None
    rate_bound: float | None = None
    flag_rate: float | None = None
    caveat: str = ""
    prescan: Prescan | None = None

    @property
    def promoted(self) -> bool:
        """Whether the run was to be scored at all: not where a pre-scan had seen enough of the prompt."""
        return self.prescan is None or self.prescan.promoted

    @property
    def score(self) -> float | None:
        """Mean score over the images of a prompt, of several prompts the highest; None where there is no score."""
        return self._highest(self.scores)

    @property
    def mean_rms(self) -> float | None:
        """Mean RMS over the images of a prompt, of several prompts the highest; None where there is no score."""
        return self._highest(self.rms)

    def _highest(self, values: tuple[float, ...]) -> float | None:
        images: dict[int, list[float]] = {}
        for number, value in zip(self.prompts or (0,) * len(values), values, strict=True):
            if not math.isnan(value):
                images.setdefault(number, []).append(value)
        return max((math.fsum(each) / len(each) for each in images.values()), default=None)


@dataclass(frozen=True)
class TokenSpan:
    """One word of a prompt and the token columns that carry it; BOS, EOS, padding, pooled are spans of their own.

    Attributes:
        text: the word as the prompt has it.
        columns: of the encoded prompt; none for a word that was cut off, and for the pooled vector.
        group: "word", or what the columns are instead; "pooled" is the prompt vector beside the tokens (SDXL, ...).
        ids: the tokenizer's ids, in the order of the columns.
        place: first and past-the-last character in the prompt, where that is known.
        emphasis: factor that the host gives to the word, 1.3 for (word:1.3).
        part: of the prompt that the word belongs to: AND parts, combined or scheduled prompts have their own rows.

    """

    text: str
    columns: tuple[int, ...]
    group: Group = "word"
    ids: tuple[int, ...] = ()
    place: tuple[int, int] | None = None
    emphasis: float = 1.0
    part: int = 0


@dataclass(frozen=True)
class Attribution:
    """How much each word contributes, and where in the picture.

    Attributes:
        method: "gradient", "ablation" or "attention".
        spans: the words in the order of the prompt, then BOS, EOS, padding and the pooled vector as far as they exist.
        weights: one per span, in ``unit``; the mean over images and scored steps.
        token_scores: one per token column.
        unit: what the weights measure.
        score: the first-step score of the prompt itself, mean over the images; None where it was not measured.
        layers: per cross-attention layer, one weight per span; method "attention" only.
        status: "ok", or the reason why there is no attribution.
        notes: what a reader must know, such as a method that stood in for another.
        maps: name -> float map [h, w] over the latent; kept out of JSON.
        images: the pictures of the run, uint8 arrays [H, W, 3], where maps were asked for; kept out of JSON.

    """

    method: str
    spans: tuple[TokenSpan, ...] = ()
    weights: tuple[float, ...] = ()
    token_scores: tuple[float, ...] = ()
    unit: str = ""
    score: float | None = None
    layers: dict[str, tuple[float, ...]] = field(default_factory=dict)
    status: str = "ok"
    notes: tuple[str, ...] = ()
    maps: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    images: tuple[Any, ...] = field(default=(), repr=False, compare=False)

    @property
    def words(self) -> tuple[tuple[str, float], ...]:
        """The words with their weights, in the order of the prompt."""
        return tuple((s.text, w) for s, w in zip(self.spans, self.weights, strict=True) if s.group == "word")

    @property
    def groups(self) -> dict[str, float]:
        """The weights of what is no word: "bos", "eos", "padding", "pooled", as far as they exist."""
        return {s.group: w for s, w in zip(self.spans, self.weights, strict=True) if s.group != "word"}


@dataclass(frozen=True)
class NeuronSet:
    """Value neurons of cross-attention layers, and what their output is multiplied with.

    Attributes:
        indices: layer name -> sorted indices; layers without neurons are left out.
        scale: factor on the neurons' output, 0 blocks them.
        model: fingerprint of the checkpoint that they were found on; "" where it is not known.
        provenance: where the set comes from, in words.
        ssim_before: memorization score without blocking: the largest MS-SSIM between the noise differences of two
            seeds; None where it was not measured.
        ssim_after: the largest MS-SSIM, over the seeds, between the noise differences without and with blocking.
        rows: UNet rows that finding the set took, forward and backward.

    """

    indices: dict[str, tuple[int, ...]]
    scale: float = 0.0
    model: str = ""
    provenance: str = ""
    ssim_before: float | None = None
    ssim_after: float | None = None
    rows: int = 0

    @property
    def count(self) -> int:
        """The number of neurons."""
        return sum(map(len, self.indices.values()))


@dataclass(frozen=True)
class Attempt:
    """One try to mitigate a run.

    Attributes:
        mitigation: what was tried, in words.
        changes: what was changed, or why nothing was; one line each.
        scores: of each image afterwards, by the detector that flagged the run; empty where it was not scored again.
        verdict: afterwards; "unknown" where it was not scored again.
        kept: whether the run went on with it.
        extra_rows: rows of the model that it cost.
        seconds: that it took.

    """

    mitigation: str
    changes: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    verdict: Verdict = "unknown"
    kept: bool = False
    extra_rows: int = 0
    seconds: float = 0.0


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
    actions: tuple[str, ...] = ()  # what was changed to mitigate the run
    attempts: tuple[Attempt, ...] = ()  # what was tried to mitigate the run
    notes: tuple[str, ...] = ()
    error: str | None = None
    scores_before: tuple[float, ...] = ()
    scores_after: tuple[float, ...] = ()
    seconds: float = 0.0
    extra_rows: int = 0
    created: str = ""
    curve: tuple[tuple[float, float], ...] = ()  # sigma and RMS of the noise gap, mean over images, of each model call
    maps: tuple[str, ...] = ()  # names of the maps that the host keeps for this run
    # squared noise gap per pixel, [B, h, w]: of the run's last step where the host can tell it, else of the last scored
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

    @property
    def verdict_after(self) -> Verdict:
        """The verdict of the last attempt that was kept; "unknown" where nothing was, or it was not scored again."""
        kept = [attempt.verdict for attempt in self.attempts if attempt.kept]
        return kept[-1] if kept else "unknown"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: numbers, strings, lists and dicts. NaN and infinity become None."""
        from .plain import report_dict

        return report_dict(self)

    def to_json(self, indent: int | None = None) -> str:
        """Return the report as JSON text with its schema version."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Report:
        """Build a report from ``to_dict``'s result.

        Raises:
            ValueError: if the schema is not the one that this version of memguard reads.

        """
        from .plain import report_of

        return report_of(values)
