"""A profile of the loaded checkpoint: first model calls of ordinary prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from modules import shared

from ..memguard.calibration import Profile, ProfileError
from ..memguard.hosts.webui.calibrating import Request, prepared, saved, watching
from ..memguard.hosts.webui.settings import Settings
from ..memguard.hosts.webui.tokens import short
from ..memguard.records import Report
from . import check, host

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
    for name in EXTRA:
        chosen = getattr(shared.opts, name, None)
        if chosen not in (None, "", "None"):
            raise ProfileError(f"the WebUI's setting {name} adds {chosen!r} to every prompt; set it to None first")
    folder = prepared(host.folder())
    reports, dtype = check.alone(_sample, asked, progress)
    return saved(asked, reports, dtype, folder)


def interrupt() -> None:
    """End a calibration that is in progress, and nothing else."""
    if shared.state.job == JOB:
        shared.state.interrupt()


def _sample(asked: Request, progress: Progress) -> tuple[list[Report], str]:
    engine, reports = host.engine(), []
    network = host.adapter().network(engine)
    if network is None:
        raise ProfileError("no checkpoint is loaded; choose one above the tabs")
    text_engine = host.adapter().text_engine(engine)
    batches = list(asked.batches(lambda text: short(text_engine, text)))
    shared.state.begin(job=JOB)
    shared.state.job_count = len(batches)
    try:
        with _last_prompt_kept():
            for images in batches:
                watch = host.watch(Settings("observe", explain="never"), check.enough, watching())
                texts, seeds = asked.rows(images)
                more = {"prompt": texts, "seed": seeds, "batch_size": len(texts), **SAMPLING}
                more |= {"width": asked.width, "height": asked.height, "negative_prompt": asked.negative_prompt}
                check.first_calls(watch, **more)
                if shared.state.interrupted or shared.state.stopping_generation or not watch.session.reports:
                    break
                reports += watch.session.reports
                if not reports[-1].findings[0].rms:
                    break
                progress(images.stop // asked.batch_size, len(asked.prompts))
                shared.state.nextjob()
    finally:
        shared.state.end()
    return reports, str(next(network.parameters()).dtype).removeprefix("torch.")


@contextmanager
def _last_prompt_kept() -> Iterator[None]:
    """Let the host not write down our prompts as the ones that its paste button gives back."""
    options = shared.cmd_opts
    before, options.no_prompt_history = options.no_prompt_history, True
    try:
        yield
    finally:
        options.no_prompt_history = before
