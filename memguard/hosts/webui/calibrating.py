"""Profiles made in the WebUIs: what is asked for, which prompts go together, and from their reports to saved files.

Part of the WebUI hosts; may import: memguard's core.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ...calibration import Conditions, Profile, ProfileError, fit, negative_of, ordinary_prompts, save
from ...calibration.profile import MINIMUM
from ...detectors import available
from ...detectors.text_noise_norm import NAME
from ...guard import Guard
from ...records import Reference, Report
from . import fields

DETECTORS = (NAME, *(name for name, each in available().items() if name != NAME and "late" not in each.NEEDS))
TOGETHER = 8  # images of one call at 512 x 512; fewer of larger ones
FIELDS: dict[str, fields.Field] = {
    "width": fields.PIXELS,
    "height": fields.PIXELS,
    "batch_size": fields.Number(1, TOGETHER),
    "prompts": fields.Texts(remedy=f"give at least {MINIMUM}, or none for ours"),
    "negative_prompt": fields.Text(),
    "name": fields.Text(fields.NAME),
}
NETWORK = re.compile(r"<\w+:[^>]+>")  # how a prompt names a LoRA or another extra network


@dataclass(frozen=True)
class Request:
    """What a profile is asked for; no prompts stand for the shipped ones.

    Attributes:
        width: pixels.
        height: pixels.
        batch_size: images of each prompt; a score is the mean over them.
        prompts: ordinary ones.
        negative_prompt: that they are compared with.
        name: note in the file.

    """

    width: int = 512
    height: int = 512
    batch_size: int = 1
    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    name: str = ""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Request:
        """Return the request that someone has typed.

        Raises:
            ProfileError: naming what is wrong, in one line.

        """
        try:
            read = fields.read(FIELDS, given, "of a profile")
        except fields.Refused as error:
            raise ProfileError(str(error)) from None
        own = tuple(text.strip() for text in read.pop("prompts", ()) if text.strip())
        if own and len(own) < MINIMUM:
            raise ProfileError(f"prompts holds {len(own)}; a profile needs at least {MINIMUM}, or none for ours")
        asked = cls(**read, prompts=own or tuple(ordinary_prompts()))
        for text in (*asked.prompts, asked.negative_prompt):
            named = NETWORK.search(text)
            if named:
                raise ProfileError(f"{named[0]} is in a prompt; a profile is of the checkpoint alone, so take it out")
        return asked

    def batches(self, short: Callable[[str], bool]) -> Iterator[range]:
        """Yield the numbers of the prompts of each call; a long prompt would lengthen its neighbours, and is alone.

        Args:
            short: whether a prompt fills one chunk of the text encoder only.

        """
        images = min(TOGETHER, TOGETHER * 512 * 512 // (self.width * self.height))
        most = max(1, images // self.batch_size)
        begin, total = 0, len(self.prompts)
        while begin < total:
            end = begin + 1
            while end < min(begin + most, total) and short(self.prompts[begin]) and short(self.prompts[end]):
                end += 1
            yield range(begin, end)
            begin = end

    def rows(self, numbers: range) -> tuple[list[str], list[int]]:
        """Return the prompt and the seed of each image of a call; no two images of a profile share a seed."""
        seeds = range(numbers.start * self.batch_size, numbers.stop * self.batch_size)
        return [self.prompts[seed // self.batch_size] for seed in seeds], list(seeds)


def prepared(folder: Path) -> Path:
    """Return a folder that profiles can be saved in; asked before anything is scored, so that nothing is lost.

    Raises:
        ProfileError: if it cannot be made, or not be written to.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ProfileError(f"{folder} cannot be made ({error.strerror}); profiles are saved there") from None
    if not os.access(folder, os.W_OK):
        raise ProfileError(f"{folder} cannot be written to; profiles are saved there")
    return folder


def watching() -> Guard:
    """Return the guard of the calls."""
    return Guard(DETECTORS)


def saved(asked: Request, reports: Sequence[Report], dtype: str, folder: str | Path) -> list[Profile]:
    """Save what ordinary prompts score.

    Args:
        asked: what was asked for.
        reports: of the calls, in order; too few where the user has interrupted them.
        dtype: of the network's weights.
        folder: where profiles are kept.

    Returns:
        the saved profiles: one for runs with this negative prompt and, where it is the empty one, one for reference
        "empty" as well.

    Raises:
        ProfileError: where a prompt has no score, or where there are too few.

    """
    scores: dict[str, list[float]] = {name: [] for name in DETECTORS}
    images = asked.batch_size
    for report in reports:
        for finding in report.findings:
            if finding.detector == NAME and not finding.rms:
                done = len(scores[NAME]) + 1
                numbers = f"{done}" if len(report.seeds) <= images else f"{done} or one of those after it"
                raise ProfileError(f"ordinary prompt {numbers} has no score, because {finding.status}")
            if finding.detector == NAME and any(map(math.isnan, finding.rms)):
                raise ProfileError(f"an ordinary prompt has no score: {finding.caveat}")
            rms = finding.rms
            scores[finding.detector] += [fmean(rms[i : i + images]) for i in range(0, len(rms), images)]
    done = len(scores[NAME])
    if done < len(asked.prompts):
        raise ProfileError(f"interrupted after {done} of {len(asked.prompts)} prompts; no profile was saved")
    first = reports[0]
    finding, gap = first.findings[0], first.noise_gap_map
    assert gap is not None and finding.sigma is not None
    # a model without cross-attention has no scores of it
    distributions = {name: fit(found) for name, found in scores.items() if len(found) == done}
    references: tuple[Reference, ...] = ("negative",) if asked.negative_prompt.strip() else ("negative", "empty")
    made = []
    for reference in references:
        conditions = Conditions(
            model=first.model,
            family=first.family,
            latent=(gap.shape[-2], gap.shape[-1]),
            sigma=finding.sigma,
            timestep=finding.timestep,
            steps_scored=1,
            num_steps=first.steps or 1,
            scheduler=first.sampler or "",
            reference=reference,
            dtype=dtype,
            guidance_scale=first.cfg or 0.0,
            negative=negative_of(asked.negative_prompt) or "",
            images=images,
        )
        made.append(Profile.read(save(Profile(conditions, distributions, asked.name), folder)))
    return made
