"""A profile of the loaded checkpoint: first model calls of ordinary prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from modules import shared

from ..memguard.calibration import Profile, ProfileError
from ..memguard.hosts.webui.calibrating import Request, prepared, saved, watching
from ..memguard.hosts.webui.settings import Settings
from ..memguard.hosts.webui.tokens import short
from ..memguard.records import Report
from . import check, host

if host.SDNEXT:
    from . import sdnext

JOB = "memguard calibrate"
SAMPLING = {"steps": 20, "cfg_scale": 7.0, "sampler_name": "Euler", "scheduler": "Automatic"}
EXTRA = ("sd_lora", "sd_hypernetwork")  # the hosts' settings that add an extra network to every prompt

Progress = Callable[[int, int], None]  # how many prompts are scored, of how many


def calibrate(given: Mapping[str, Any], progress: Progress = lambda done, of: None) -> list[Profile]:
    """Return the saved profiles.

    Args:
        given: fields of ``Request``.
        progress: told after each call.

    Raises:
        ProfileError: for bad input, a prompt without a score, or the Interrupt button; nothing is saved then.

    """
    asked = Request.of(given)
    if host.SDNEXT:
        asked = replace(asked, prompts=tuple(text for text in asked.prompts if sdnext.reads(text)))
    for name in EXTRA:
        chosen = getattr(shared.opts, name, None)
        if chosen not in (None, "", "None"):
            raise ProfileError(f"the WebUI's setting {name} adds {chosen!r} to every prompt; set it to None first")
    folder = prepared(host.folder())
    reports, dtype = check.alone(_sample, asked, progress)
    return saved(asked, reports, dtype, folder)


class _Now:
    """Whether a calibration is in progress, and whether it is to end: SD.Next forgets at each job within a job."""

    calibrates = interrupted = False


def interrupt() -> None:
    """End a calibration that is in progress, and nothing else."""
    if _Now.calibrates and (host.SDNEXT or shared.state.job == JOB):
        _Now.interrupted = True
        shared.state.interrupt()


def _sample(asked: Request, progress: Progress) -> tuple[list[Report], str]:
    engine, reports = host.engine(), []
    network = host.adapter().network(engine)
    if network is None:
        raise ProfileError("no checkpoint is loaded; choose one above the tabs")
    text_engine = host.adapter().text_engine(engine)
    batches = list(asked.batches(lambda text: short(text_engine, text)))
    shared.state.begin(JOB)
    shared.state.job_count = len(batches)
    _Now.calibrates, _Now.interrupted = True, False
    try:
        with _last_prompt_kept():
            for images in batches:
                watch = host.watch(Settings("observe", explain="never"), check.enough, watching())
                texts, seeds = asked.rows(images)
                more = {"prompt": texts, "seed": seeds, "batch_size": len(texts), **SAMPLING}
                more |= {"width": asked.width, "height": asked.height, "negative_prompt": asked.negative_prompt}
                check.first_calls(watch, **more)
                stopping = shared.state.interrupted or getattr(shared.state, "stopping_generation", False)
                if stopping or _Now.interrupted or not watch.session.reports:
                    break
                reports += watch.session.reports
                if not reports[-1].findings[0].rms:
                    break
                progress(images.stop // asked.batch_size, len(asked.prompts))
                shared.state.nextjob()
    finally:
        _Now.calibrates = False
        shared.state.end()
    return reports, str(next(network.parameters()).dtype).removeprefix("torch.")


@contextmanager
def _last_prompt_kept() -> Iterator[None]:
    """Let the host not write down our prompts as the ones that its paste button gives back."""
    options = shared.cmd_opts
    if host.SDNEXT:  # it writes down those of pictures
        yield
        return
    before, options.no_prompt_history = options.no_prompt_history, True
    try:
        yield
    finally:
        options.no_prompt_history = before
