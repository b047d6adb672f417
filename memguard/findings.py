"""What is found of a run: scores and verdicts, words and maps, what was tried to mitigate it. The parts of a report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .evidence import Reference

if TYPE_CHECKING:  # a command that only prints its help does not wait for it
    from torch import Tensor

Verdict = Literal["ordinary", "suspicious", "memorized", "unknown"]
Group = Literal["word", "bos", "eos", "padding", "pooled"]

# from harmless to grave; "unknown" is not on the scale
VERDICTS: tuple[Verdict, ...] = ("ordinary", "suspicious", "memorized")
FLAGGED: frozenset[Verdict] = frozenset({"suspicious", "memorized"})


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


class Judged:
    """What follows from the parts of a report alone; its sentence rests on this and stands below the report itself."""

    findings: tuple[Finding, ...]
    attempts: tuple[Attempt, ...]
    attribution: Attribution | None
    error: str | None

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
