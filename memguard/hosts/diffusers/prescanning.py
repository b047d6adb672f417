"""``prescan``: a first look at a smaller size, and the scan of those prompts that stand out there.

The list is worked off in blocks of a fixed number of prompts. Which prompts of a block are promoted depends on that
block alone, and so does which of them share a forward; a list that is cut at multiples of the block is scored to the
same bits as in one piece. A promoted prompt starts from the noise of its own seed, whatever was left out before it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from ...calibration import Have, Profile, negative_of
from ...calibration.prescan import PROMOTE, Frame, left_out, looked, unsuited
from ...records import Prescan, Report
from ...troubles import Refused
from . import pipes
from .scanning import scan
from .scans import Scan

FORWARDS = 64  # of the first look in a block, at most: rows come and are kept only when their block has been looked at
PROBE = "a photograph of a red bicycle"  # any prompt that can be scored


def prescan(
    pipe: Any, prompts: Iterable[Any], first: Profile, promote: float = PROMOTE, **settings: Any
) -> Iterator[Report]:
    """Look at prompts at a smaller size and scan those that rank high there; yields one Report per prompt, in order.

    The findings of every report hold what the first look said (``prescan``). A prompt that is not promoted has no score
    and no verdict; its status says where it ranked. Scores of promoted prompts are those of ``scan``, up to rounding:
    other prompts share their forward. Memory does not grow with the number of prompts.

    Args:
        pipe: as ``scan``.
        prompts: as ``scan``.
        first: what ordinary prompts score at the smaller size: ``calibrate`` with that height and width. Its size and
            number of images are those of the first look.
        promote: share of ordinary prompts that go on to the scan, between 0 and 1.
        **settings: as ``scan``.

    Raises:
        ValueError: as ``scan``, for a share out of range, for a profile that is not of a smaller size and the same
            shape or was made under other conditions, and if the first look fails.

    """
    seeds = settings.pop("seeds", None)
    if seeds is not None:
        settings["own_seeds"] = True
    return Sieve(pipe, first, promote, **settings).reports(prompts, seeds)


class Sieve:
    """Two scans of one list: of all prompts at a smaller size, and of those that it promotes.

    Attributes:
        block: number of prompts after which all starts anew; shards and resumed scans begin at its multiples. Its
            promoted ordinary prompts are as many as fill one forward of the scan, on average: a smaller block would
            leave forwards empty, a larger one would fill them little better and keep rows waiting. It is a multiple of
            the first look's forward.

    Raises:
        ValueError: as ``prescan``.

    """

    def __init__(self, pipe: Any, first: Profile, promote: float = PROMOTE, **settings: Any) -> None:
        if not 0 < promote < 1:
            raise Refused(f"promote is {promote}; give a share of ordinary prompts between 0 and 1, for example 0.1")
        bound = inspect.signature(scan).bind(pipe, (), **settings)
        bound.apply_defaults()
        given = {name: value for name, value in bound.arguments.items() if name not in ("pipe", "prompts", "seeds")}
        self.pipe, self.promote = pipe, promote
        self.full = Scan(pipe, **given)
        pixels = pipes.latent_pixels(pipe)
        size = self._size(given["height"], given["width"])
        frame = Frame(*size, pixels, max(8, pixels * pipes.patch(pipe)))
        wrong = unsuited(first, self.full.guard.detectors, self._have(), promote, frame)
        if wrong is not None:
            raise Refused(wrong)
        conditions = first.conditions
        self.height, self.width = pixels * conditions.latent[0], pixels * conditions.latent[1]
        # as many pixels in a forward as the scan's have, for the same memory
        larger = math.prod(size) * self.full.images / (self.height * self.width * conditions.images)
        given |= {"height": self.height, "width": self.width, "num_images": conditions.images, "profile": first}
        self.small = Scan(pipe, **given | {"batch_size": max(1, int(self.full.batch_size * larger))})
        many = self.small.batch_size
        self.block = many * min(FORWARDS, math.ceil(self.full.batch_size / (promote * many)))
        try:
            self._probe()
        finally:
            pipe.maybe_free_model_hooks()

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        module = self.full.module
        filled = pipes.size(self.pipe, module, height, width)
        own = pipes.own_side(self.pipe, module)
        sides = filled.get("height", own), filled.get("width", own)
        if sides[0] is None or sides[1] is None:
            raise Refused("give height and width: the model has no size of its own, so none is known to be smaller")
        return sides[0], sides[1]

    def _have(self) -> Have:
        """Return what is known of the scan before it runs."""
        full, facts = self.full, self.full.facts
        return Have(
            model=facts["model"],
            sigma=None,
            steps_scored=full.guard.steps,
            reference=full.guard.reference,
            negative=negative_of(facts["negative_prompt"] or ""),
            scheduler=facts["sampler"],
            num_steps=facts["steps"],
            guidance_scale=facts["cfg"],
        )

    def _probe(self) -> None:
        """Look at one prompt: how a run begins, for which a profile holds or not, is known when the model is called."""
        for report in self.small.scored([(PROBE, self.full.seed)]):
            if report.error:
                said = f"the first look at {self.height}x{self.width} fails"
                raise Refused(f"{said}: {report.error.splitlines()[0]}")  # there is no row that could say it
            for finding in report.findings:
                if finding.scores and finding.p_value is None:
                    raise Refused(finding.threshold_source.removeprefix("uncalibrated: "))

    def reports(self, prompts: Iterable[Any], seeds: Iterable[int] | None = None) -> Iterator[Report]:
        """Yield the reports of prompts, of which the first begins a block; as ``prescan``."""
        source = self.full.paired(prompts, seeds)
        try:
            while block := list(islice(source, self.block)):
                yield from self._sifted(block)
        finally:
            self.pipe.maybe_free_model_hooks()

    def _sifted(self, block: list[tuple[Any, int]]) -> Iterator[Report]:
        seen = [self._look(report) for report in self.small.scored(block)]
        promoted = (each for each, (_, looks) in zip(block, seen, strict=True) if looks[0].promoted)
        scored = self.full.scored(promoted)
        for report, looks in seen:
            yield _with(next(scored), report, looks) if looks[0].promoted else report

    def _look(self, report: Report) -> tuple[Report, tuple[Prescan, ...]]:
        """Return the report of a first look as that of a prompt which is not promoted, and what was seen."""
        looks = looked(report.findings, self.promote, self.height, self.width)
        findings = tuple(left_out(found, look) for found, look in zip(report.findings, looks, strict=True))
        return replace(report, findings=findings, noise_gap_map=None), looks


def _with(report: Report, first: Report, looks: tuple[Prescan, ...]) -> Report:
    """Return the report of a promoted prompt with its first look, which has cost something, too."""
    findings = tuple(replace(found, prescan=look) for found, look in zip(report.findings, looks, strict=True))
    seconds, rows = first.seconds + report.seconds, first.extra_rows + report.extra_rows
    return replace(report, findings=findings, seconds=seconds, extra_rows=rows)
