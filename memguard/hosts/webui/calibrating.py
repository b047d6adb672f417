"""Profiles made in the WebUIs: what is asked for, which prompts go together, and from their reports to saved files.

Part of the WebUI hosts.
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
from ...troubles import Refused
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
        except Refused as error:
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
        """Yield the images of each call; a long prompt would lengthen its neighbours, and is alone with its own images.

        Args:
            short: whether a prompt fills one chunk of the text encoder only.

        """
        most = min(TOGETHER, TOGETHER * 512 * 512 // (self.width * self.height))
        alone = [not short(text) for text in self.prompts]
        begin, total = 0, len(self.prompts) * self.batch_size
        while begin < total:
            first, end = begin // self.batch_size, begin + 1
            while end < min(begin + most, total):
                other = end // self.batch_size
                if other != first and (alone[first] or alone[other]):
                    break
                end += 1
            yield range(begin, end)
            begin = end

    def rows(self, images: range) -> tuple[list[str], list[int]]:
        """Return the prompt and the seed of each image of a call; no two images of a profile share a seed."""
        return [self.prompts[image // self.batch_size] for image in images], list(images)


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
    rms: dict[str, list[float]] = {name: [] for name in DETECTORS}  # of all images; a prompt's may be of two calls
    images = asked.batch_size
    for report in reports:
        for finding in report.findings:
            if finding.detector == NAME and not finding.rms:
                begun = len(rms[NAME])
                one, last = begun // images + 1, (begun + len(report.seeds) - 1) // images + 1
                numbers = f"{one}" if one == last else f"{one} or one of those after it"
                raise ProfileError(f"ordinary prompt {numbers} has no score, because {finding.status}")
            if finding.detector == NAME and any(map(math.isnan, finding.rms)):
                raise ProfileError(f"an ordinary prompt has no score: {finding.caveat}")
            rms[finding.detector] += finding.rms
    done = len(rms[NAME]) // images
    if done < len(asked.prompts):
        raise ProfileError(f"interrupted after {done} of {len(asked.prompts)} prompts; no profile was saved")
    first = reports[0]
    finding, gap = first.findings[0], first.noise_gap_map
    assert gap is not None and finding.sigma is not None
    # a model without cross-attention has no scores of it
    scores = {name: _means(found, images) for name, found in rms.items() if len(found) == len(rms[NAME])}
    distributions = {name: fit(found) for name, found in scores.items()}
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


def _means(found: Sequence[float], images: int) -> list[float]:
    """Return the score of each prompt: the mean over its images, which lie beside each other."""
    return [fmean(found[i : i + images]) for i in range(0, len(found), images)]
