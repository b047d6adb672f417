"""A score without a picture: sampling ends when the scored calls are made. May import: the WebUI, memguard.hosts."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from modules import processing, scripts, shared
from modules.call_queue import queue_lock

from ..memguard.hosts.webui.settings import Settings
from . import controls, host

SETTINGS: dict[str, Any] = {  # of a check, and what they are by default
    "prompt": "",
    "negative_prompt": "",
    "steps": 20,
    "width": 512,
    "height": 512,
    "cfg_scale": 7.0,
    "sampler_name": "Euler",
    "scheduler": "Automatic",
    "seed": -1,
    "batch_size": 1,
    "sensitivity": 99.0,
    "scored_steps": 1,
    "detector": "text_noise_norm",
    "reference": "negative",
    "explain": "flagged",
    "profile": "automatic",
}
OF_GUARD = ("sensitivity", "detector", "reference", "explain", "profile")


class Checked(BaseException):
    """Ends the sampling of a check. No error: the host's callbacks swallow those."""


class _Only(scripts.Script):
    """All the scripts that a check runs: Forge takes its model from the pass that is about to be sampled."""

    filename, args_from, args_to, alwayson, name = __file__, 0, 0, True, "memguard check"

    def __init__(self, watch: Any) -> None:
        self.watch = watch

    def title(self) -> str:
        return self.name

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        self.watch.before_pass(p)


def check(**given: Any) -> Any:
    """Return the session of a check.

    Raises:
        ValueError: for a setting that there is not, or out of range.

    """
    unknown = sorted(set(given) - set(SETTINGS))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no setting of a check; there are {', '.join(SETTINGS)}")
    asked = SETTINGS | given
    if not str(asked["prompt"]).strip():
        raise ValueError("prompt is empty; give the prompt to check")
    settings = {name: asked.pop(name) for name in OF_GUARD}
    settings |= {"policy": "observe", "steps": asked.pop("scored_steps")}

    def enough() -> None:
        raise Checked

    watch = host.watch(Settings.of([settings]), enough)
    if not host.FORGE:
        with queue_lock:
            return _sample(asked, watch)
    from modules_forge import main_thread

    with queue_lock:
        session = main_thread.run_and_wait_result(_sample, asked, watch)
    if session is None:
        raise ValueError(f"the check failed: {main_thread.last_exception}")
    return session


def _sample(asked: dict[str, Any], watch: Any) -> Any:
    runner = scripts.ScriptRunner()
    runner.scripts = runner.alwayson_scripts = [_Only(watch)]
    made = processing.StableDiffusionProcessingTxt2Img(
        sd_model=shared.sd_model, do_not_save_samples=True, do_not_save_grid=True, **asked
    )
    with closing(made) as p:
        p.scripts, p.script_args = runner, ()
        setattr(p, controls.HELD, watch)
        shared.state.begin(job="memguard check")
        try:
            processing.process_images(p)
        except Checked:
            pass
        finally:
            shared.state.end()
    watch.session.end()
    return watch.session
