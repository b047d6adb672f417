"""What SD.Next has under other names than A1111. May import: fastapi, the WebUI."""

from __future__ import annotations

import re
from typing import Any

import installer
from fastapi import Depends
from modules import processing, sd_samplers, shared


class _Job:
    """The generation in progress: its number, and the host's result before it."""

    number = 0
    before: Any = None


def begun(p: Any) -> None:
    """Count a generation."""
    _Job.number += 1
    _Job.before = processing.processed


def job() -> float:
    """Return what tells generations apart; the host's own times tell parts of one apart."""
    return float(_Job.number)


def timestamp() -> str:
    """Return the host's name of the generation in progress, as its answer has it; the clock's where it has none."""
    made = processing.processed
    return str(shared.state.job_timestamp if made is None or made is _Job.before else made.job_timestamp)


def asked(given: dict[str, Any]) -> dict[str, Any]:
    """Return what the page's controls say in a check's terms: samplers come by number, and cfg -1 is the model's."""
    found = {name: value for name, value in given.items() if name != "cfg_scale" or value >= 0}
    if isinstance(found.get("sampler_name"), int):
        found["sampler_name"] = processing.get_sampler_name(found["sampler_name"])
    return found


def samplers() -> list[str]:
    """Return the names of the samplers, without the lines between them."""
    return [name for name in sd_samplers.all_samplers_map if not sd_samplers.is_separator(name)]


def processing_of(seed: Any, scheduler: str = "", **asked: Any) -> Any:
    """Return the host's processing; samplers bring their schedule, and seeds of several images come one by one."""
    seeds = seed if isinstance(seed, list) else [seed]
    made = processing.StableDiffusionProcessingTxt2Img(seed=seeds[0], **asked)
    if len(seeds) > 1:
        made.all_seeds = list(seeds)
    return made


def reads(text: str) -> bool:
    """Whether the host reads a prompt as one: it takes away all signs before the first word."""
    return re.search(r"\w", text) is not None


def required() -> list[Any]:
    """Return what routes depend on: the name and password that the host's own ask for."""
    return [Depends(shared.api.auth)] if shared.api.credentials else []


def version() -> str:
    """Return the host's version: date and commit, where it knows them."""
    known = [str(installer.version.get(name, "")) for name in ("updated", "commit")]
    return " ".join(each for each in known if each and each != "unknown")
