"""The values that cross rooms: the report, and the door to the records that it is made of and made from.

Those stand in files of their own, below the sentence and the plain values that a report writes of them, so that
nothing goes round in a circle.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from .evidence import REFERENCES, Parameterization, Reference, StepEvidence
from .findings import FLAGGED, VERDICTS, Attempt, Attribution, Finding, Group, Judged, Prescan, TokenSpan, Verdict
from .plain import SCHEMA, report_dict, report_fields

if TYPE_CHECKING:  # a command that only prints its help does not wait for it
    from torch import Tensor

__all__ = [
    "FLAGGED",
    "POLICIES",
    "REFERENCES",
    "SCHEMA",
    "VERDICTS",
    "Attempt",
    "Attribution",
    "Finding",
    "Group",
    "NeuronSet",
    "Parameterization",
    "Policy",
    "Prescan",
    "Reference",
    "Report",
    "StepEvidence",
    "TokenSpan",
    "Verdict",
]

Policy = Literal["observe", "warn", "stop", "mitigate"]

POLICIES: tuple[Policy, ...] = ("observe", "warn", "stop", "mitigate")


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
class Report(Judged):
    """Everything that is known of one sampling run. ``to_json`` is the format that all screens read.

    Attributes:
        run: id of the run, which no other run has; "" where none was begun.
        host: "comfyui", "a1111", "forge", "diffusers" or another host's name; "" where it is not known.
        host_version: version of that host, as it writes it.
        memguard_version: version of MemGuard that made the report.
        model: fingerprint of the checkpoint; "" where it is not known.
        family: family of the model: "sd15", "sd2", "sdxl", "sd3", "flux" or "other".
        prompt: text that was scored; None where the host cannot tell it.
        negative_prompt: text on the other side of guidance; None where there is none or it cannot be told.
        seeds: seeds of the noise, one for each image, or one for the whole batch; empty where they are not known.
        sampler: its name in the host; None where it is not known.
        steps: sampling steps that were asked for, 0 for a check before sampling; None where they are not known.
        cfg: guidance scale; None where it is not known or there is none.
        width: of the picture, pixels; None where it is not known.
        height: of the picture, pixels; None where it is not known.
        policy: what a run that looks memorized leads to.
        findings: what each detector says, in the order in which they were asked.
        attribution: how much each word contributes; None where it was not asked for.
        actions: what was changed in the run, one line each, and only what the host has seen to act.
        attempts: what was tried to mitigate the run, in order.
        notes: what a reader must know beside the verdict, one line each.
        error: the last error inside MemGuard, in a programmer's words; None where there was none.
        scores_before: score of each image by the detector that led to the first attempt; empty where there was none.
        scores_after: the same after the last attempt that was kept and scored; empty where there is none.
        seconds: how long the run took, from its beginning to its report.
        extra_rows: rows of the model that MemGuard computed beside the host's own.
        created: when the run began, ISO 8601 with time zone.
        curve: sigma and RMS of the noise gap, mean over the images, of each model call that has both predictions.
        maps: names of the maps that the host keeps for this run.
        noise_gap_map: squared noise gap per pixel of the latent, [B, h, w]: of the run's last step where the host can
            tell it, else of the last scored one; None where there is no evidence. Kept out of JSON.

    """

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
    attempts: tuple[Attempt, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None
    scores_before: tuple[float, ...] = ()
    scores_after: tuple[float, ...] = ()
    seconds: float = 0.0
    extra_rows: int = 0
    created: str = ""
    curve: tuple[tuple[float, float], ...] = ()
    maps: tuple[str, ...] = ()
    noise_gap_map: Tensor | None = field(default=None, repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: numbers, strings, lists and dicts. NaN and infinity become None."""
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
        return cls(**report_fields(values, [f.name for f in fields(cls) if f.compare]))
