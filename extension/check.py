"""A score without a picture: sampling ends when the scored calls are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from typing import Any

from modules import processing, scripts, sd_samplers, shared
from modules.call_queue import queue_lock

from ..memguard.hosts.webui import fields
from ..memguard.hosts.webui.settings import DEFAULTS, FIELDS, Settings
from ..memguard.setting import Setting
from . import controls, host

SETTINGS: dict[str, Setting] = {  # of a check's sampling
    "prompt": Setting(""),
    "negative_prompt": Setting(""),
    "steps": Setting(20, least=fields.STEPS[0], most=fields.STEPS[1]),
    "width": fields.PIXELS,
    "height": fields.PIXELS,
    "cfg_scale": Setting(7.0, least=0, most=100),
    "sampler_name": Setting("Euler"),
    "scheduler": Setting("Automatic"),
    "seed": Setting(-1, least=-1, most=2**53),
    "batch_size": Setting(1, least=1, most=8),
}
if host.SDNEXT:
    from . import sdnext

OF_GUARD = ("sensitivity", "detector", "reference", "explain", "profile")


class Checked(BaseException):
    """Ends the sampling of a check. No error: the host's callbacks swallow those."""


class _Only(scripts.Script):
    """All the scripts that a check runs: Forge takes its model from the pass that is about to be sampled."""

    filename, args_from, args_to, alwayson, name = __file__, 0, 1, True, "memguard check"  # SD.Next skips 0 to 0

    def __init__(self, watch: Any) -> None:
        self.watch = watch

    def title(self) -> str:
        return self.name

    def process(self, p: Any, *args: Any) -> None:
        """Begin in SD.Next, which has no hook before a pass."""
        if host.SDNEXT:
            self.watch.own(p)

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        self.watch.before_pass(p)

    def post_sample(self, p: Any, *args: Any) -> None:
        """Let nothing be decoded where the sampling was interrupted."""
        raise Checked


def asked_for(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a check, each in its range.

    Raises:
        Refused: naming what cannot be used, in one line.

    """
    known: dict[str, fields.Field] = {
        **SETTINGS,
        "prompt": fields.Text(needed=True),
        "negative_prompt": fields.Text(),
        # the host would take another in silence
        "sampler_name": replace(SETTINGS["sampler_name"], choices=dict.fromkeys(_samplers(), "")),
        "scheduler": replace(SETTINGS["scheduler"], choices=dict.fromkeys(_schedulers(), "")),
        "scored_steps": FIELDS["steps"],
        **{name: FIELDS[name] for name in OF_GUARD},
    }
    defaults = {name: setting.default for name, setting in SETTINGS.items()}
    given = {**defaults, "scored_steps": DEFAULTS["steps"], **given} if isinstance(given, Mapping) else given
    return fields.read(known, given, "of a check")


def _samplers() -> Iterable[str]:
    return sdnext.samplers() if host.SDNEXT else sd_samplers.all_samplers_map


def _schedulers() -> Iterable[str]:
    if host.SDNEXT:  # its samplers bring their own
        return ("Automatic",)
    from modules import sd_schedulers

    return sd_schedulers.schedulers_map


def check(given: Mapping[str, Any]) -> Any:
    """Return the session of a check.

    Args:
        given: settings by name; what is missing is as in SETTINGS, and as in the accordion's.

    Raises:
        Told: for a setting that there is not, or out of range.

    """
    asked = asked_for(given)
    settings = {name: asked.pop(name) for name in OF_GUARD if name in asked}
    settings |= {"policy": "observe", "steps": asked.pop("scored_steps")}
    watch = host.watch(Settings.of([settings]), enough)
    alone(_sample, asked, watch)
    return watch.session


def enough() -> None:
    """End the sampling: the scored calls are made."""
    raise Checked


def alone(work: Any, *args: Any) -> Any:
    """Do work that samples while nothing else is sampled; Forge does it on its main thread only."""
    with queue_lock:
        if not host.FORGE:
            return work(*args)
        from modules_forge import main_thread

        done: list[Any] = []
        failed: list[Exception] = []

        def run() -> None:
            try:
                done.append(work(*args))
            except Exception as error:  # that thread would print it and give out nothing
                failed.append(error)

        main_thread.run_and_wait_result(run)
        if failed:
            raise failed[0]
        return done[0]


def first_calls(watch: Any, **asked: Any) -> None:
    """Sample until the watch has seen enough; ``asked`` are fields of the host's processing."""
    runner = scripts.ScriptRunner()
    runner.scripts = runner.alwayson_scripts = [_Only(watch)]
    engine = host.engine()
    begin = sdnext.processing_of if host.SDNEXT else processing.StableDiffusionProcessingTxt2Img
    made = begin(sd_model=engine, do_not_save_samples=True, do_not_save_grid=True, **asked)
    with ExitStack() as stack:
        stack.callback(watch.leave)
        with closing(made) as p, suppress(Checked), host.schedule_kept(engine):
            p.scripts, p.script_args = runner, ()
            setattr(p, controls.HELD, watch)
            processing.process_images(p)
        watch.finish()


def _sample(asked: dict[str, Any], watch: Any) -> None:
    shared.state.begin("memguard check")
    try:
        first_calls(watch, **asked)
    finally:
        shared.state.end()
