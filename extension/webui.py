"""The script that A1111 and Forge show as an accordion, and the callbacks that it needs. May import: the WebUI."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from modules import script_callbacks, scripts

from ..memguard.hosts.webui.sampling import FAILED
from ..memguard.hosts.webui.session import Session, infotext
from ..memguard.hosts.webui.settings import Settings
from . import api, axes, controls, gallery, host, options, panel, tab

log = logging.getLogger("memguard")

HELD = controls.HELD
STOP = "stop"
_open: list[Any] = []  # the watch of the generation in progress; the hosts run one at a time


class MemGuardScript(scripts.Script):
    """Watches every generation while its box is ticked."""

    def title(self) -> str:
        return controls.TITLE

    def show(self, is_img2img: bool) -> Any:
        panel.place(self, "img2img" if is_img2img else "txt2img")
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        made, self.infotext_fields = controls.build(is_img2img)
        self.paste_field_names = [name for _, name in self.infotext_fields]
        return made

    def process(self, p: Any, *args: Any) -> None:
        """Begin a session; what was typed wrong is said, and the picture is made without MemGuard."""
        setattr(p, HELD, None)
        while _open:  # a generation that an error has ended is closed now
            _open.pop().leave()
        try:
            settings = Settings.of(args, getattr(p, controls.CHANGED, None))
            if settings is None:
                return
            p.extra_generation_params.update(settings.infotext())
            watch = host.watch(settings)
            _open.append(watch)
            setattr(p, HELD, watch)
        except Exception as error:
            log.warning("%s", error)
            if _asks_for(STOP, args, getattr(p, controls.CHANGED, None)):  # fails closed
                host.stop()
                _say(p, FAILED.format(error).removeprefix("MemGuard: "))
            else:
                _say(p, f"off, because {error}")

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        watch = getattr(p, HELD, None)
        if watch is not None:
            _careful(watch, lambda: watch.before_pass(p))

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Close the passes of a batch, and write its scores where its pictures are saved."""
        session = _session(p)
        if session is None:
            return
        before = len(session.reports)
        getattr(p, HELD).finish()
        # hires ends its first pass when its second begins
        told, session.told = session.told, len(session.reports)
        if before < len(session.reports):
            p.extra_generation_params.update(infotext(session.reports[told:], len(p.prompts)))
        if session.stopped:
            p.comment(session.stopped)  # the host collects comments before it calls postprocess
        gallery.draw(session, told, kwargs.get("images"))

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        session = _session(p)
        if session is None:
            return
        getattr(p, HELD).finish()
        gallery.add(session, processed)
        api.keep(getattr(p, "job_timestamp", None) or processed.job_timestamp, session)


def _session(p: Any) -> Session | None:
    watch = getattr(p, HELD, None)
    return None if watch is None else watch.session


def _asks_for(policy: str, *given: Any) -> bool:
    """Return whether settings that cannot be read name a policy all the same."""
    flat = [value for each in given if each for value in (each.values() if isinstance(each, dict) else each)]
    return policy in flat or any(isinstance(value, dict) and value.get("policy") == policy for value in flat)


def _careful(watch: Any, work: Callable[[], None]) -> None:
    """Do a part of the watch's work; an error of ours costs no picture, except under policy "stop"."""
    try:
        work()
    except Exception as error:
        watch.session.broke(error)


def _say(p: Any, text: str) -> None:
    p.comment(f"MemGuard: {text}")
    p.extra_generation_params["MemGuard verdict"] = text


def _of(denoiser: Any) -> Any:
    return getattr(getattr(denoiser, "p", None), HELD, None)


def register() -> None:
    """Register the callbacks; "Reload UI" forgets them and calls this again."""
    seen: list[Any] = [None]  # the watch whose denoiser was asked last: on_cfg_denoised does not name it

    def before(params: Any) -> None:
        seen[0] = watch = _of(params.denoiser)
        if watch is not None:
            _careful(watch, lambda: watch.before(params))

    def after(params: Any) -> None:
        watch = seen[0]
        if watch is not None:
            _careful(watch, lambda: watch.after(params))

    axes.add()
    options.add()
    script_callbacks.on_cfg_denoiser(before)
    script_callbacks.on_cfg_denoised(after)
    script_callbacks.on_app_started(api.serve)
    script_callbacks.on_ui_tabs(tab.tabs)
