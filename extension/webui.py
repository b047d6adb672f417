"""The script that A1111 and Forge show as an accordion, and the callbacks that it needs."""

from __future__ import annotations

import logging
from typing import Any
from weakref import ref

from modules import script_callbacks, scripts

from ..memguard.hosts.webui.places import SCORE, VERDICT, Place, infotext, of_all, stopped_by
from ..memguard.hosts.webui.session import Session
from ..memguard.hosts.webui.settings import Settings
from ..memguard.troubles import Told, in_words
from . import api, axes, controls, gallery, host, jobs, options, panel, tab

log = logging.getLogger("memguard")

HELD = controls.HELD
STOP = "stop"


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
        if jobs.inside(p):  # a copy of a generation in progress
            return
        setattr(p, HELD, None)
        _forget(p)  # a folder of pictures is made by one processing
        jobs.clear()
        changed = getattr(p, controls.CHANGED, None)
        try:
            settings = Settings.of(args, changed)
            if settings is None:
                return
            watch = host.watch(settings)
            p.extra_generation_params.update(settings.infotext())
        except Exception as error:
            if not isinstance(error, Told):
                log.exception("the settings could not be used")
            why = in_words(error)
            trouble = why if isinstance(error, host.Unknown) else f"the settings cannot be used: {why}"
            watch = Refused(p, why, trouble, _asks_for(STOP, args, changed))
            log.warning("%s", why)
        jobs.open(p, watch)

    def process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Forget what was said of the batch before: hires saves pictures in the midst of this one, too."""
        watch = getattr(p, HELD, None)
        if watch is not None and watch.owner() is p and not watch.session.trouble:
            _forget(p)
            watch.session.batch = Place(p.iteration, p.n_iter)

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        watch = getattr(p, HELD, None)
        if watch is not None:
            with watch.session.careful():
                watch.before_pass(p)

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Close the passes of a batch, and write its scores where its pictures are saved."""
        watch = getattr(p, HELD, None)
        if watch is None:
            return
        session = watch.session
        with session.careful(over=True):
            watch.finish()
            if watch.owner() is not p:
                return
            # hires ends its first pass when its second begins
            told, session.told = session.told, len(session.reports)
            _write(p, session, told)
            if session.stopped:
                host.comment(p, session.stopped)  # the host collects comments before it calls postprocess
            gallery.draw(session, told, kwargs.get("images"))

    def postprocess_image_after_composite(self, p: Any, *args: Any) -> None:
        """Close the passes that other extensions have sampled for a picture, and name them where it is saved."""
        watch = getattr(p, HELD, None)
        if watch is None or watch.owner() is not p:
            return
        with watch.session.careful(over=True):
            before = len(watch.session.reports)
            watch.finish()
            if before < len(watch.session.reports):
                _write(p, watch.session, _begun(watch.session))
                watch.session.told = len(watch.session.reports)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        watch = getattr(p, HELD, None)
        if watch is None or watch.owner() is not p:  # a copy: other extensions call this in the midst of a generation
            return
        session = watch.session
        try:
            with session.careful(over=True):
                watch.finish()
                gallery.add(session, processed)
            with session.careful(over=True):
                _write_all(p, session)
            api.keep(getattr(p, "job_timestamp", None) or processed.job_timestamp, session)
        finally:
            jobs.close(p)


class Refused:
    """Stands where a watch would, for settings or a host that cannot be used: nothing is guarded, the report says so.

    Args:
        p: the host's StableDiffusionProcessing.
        why: in words.
        trouble: the same as a sentence of its own.
        stops: whether the settings ask for policy "stop", which fails closed.

    """

    def __init__(self, p: Any, why: str, trouble: str, stops: bool) -> None:
        guard = Settings(policy=STOP if stops else "observe").guard(host.folder())
        self.session = Session(guard, host.NAME, host.version(), host.stop)
        self.session.refuse(trouble, prompt=" | ".join(dict.fromkeys(p.all_prompts or ())))
        p.extra_generation_params[VERDICT] = f"off, because {why}"
        host.comment(p, f"MemGuard: {self.session.trouble}")
        if stops:
            self.session.stop(f"MemGuard: stopped, because {self.session.trouble}")
            host.comment(p, self.session.stopped)

    def own(self, p: Any) -> None:
        self.owner = ref(p)

    def nothing(self, *_: Any) -> None:
        """Nothing is done."""

    before_pass = before = after = cancel = finish = leave = nothing


def _begun(session: Session) -> int:
    """Return the number of the first report of the last batch."""
    batch = session.places[-1].batch
    return next(number for number, place in enumerate(session.places) if place.batch == batch)


def _forget(p: Any) -> None:
    """Take back what pictures are saved with."""
    for key in (VERDICT, SCORE):
        p.extra_generation_params.pop(key, None)


def _write(p: Any, session: Session, first: int) -> None:
    """Write down what a batch's pictures say of the passes that made them."""
    if session.trouble:
        return
    told = stopped_by(infotext(session.reports[first:], len(p.prompts), session.places[first:]), session.stopped)
    p.extra_generation_params.update(told)


def _write_all(p: Any, session: Session) -> None:
    """Write down what is said of all batches: in a grid's text, and in the answer."""
    if session.trouble or not session.reports:
        return
    if len({place.batch for place in session.places}) > 1 or VERDICT not in p.extra_generation_params:
        _forget(p)
        told = {VERDICT: of_all(session.reports, session.places)}
        p.extra_generation_params.update(stopped_by(told, session.stopped))


def _asks_for(policy: str, *given: Any) -> bool:
    """Return whether settings that cannot be read name a policy all the same."""
    flat = [value for each in given if each for value in (each.values() if isinstance(each, dict) else each)]
    return policy in flat or any(isinstance(value, dict) and value.get("policy") == policy for value in flat)


def script() -> type[MemGuardScript]:
    """Return the script for this host."""
    if not host.SDNEXT:
        return MemGuardScript
    from .sdnext_script import SDNextScript

    return SDNextScript


def register() -> None:
    """Register the callbacks; "Reload UI" forgets them and calls this again."""
    seen: list[ref[Any]] = []  # the watch whose denoiser was asked last: on_cfg_denoised does not name it

    def before(params: Any) -> None:
        seen.clear()
        watch = jobs.of(params.denoiser.p)
        if watch is not None:
            seen.append(ref(watch))
            with watch.session.careful():
                watch.before(params)
            watch.cancel()

    def after(params: Any) -> None:
        watch = seen[0]() if seen else None
        if watch is not None:
            with watch.session.careful():
                watch.after(params)
            watch.cancel()

    def grid(params: Any) -> None:
        p = jobs.owner()
        if p is not None:
            with getattr(p, HELD).session.careful(over=True):
                _write_all(p, getattr(p, HELD).session)

    axes.add()
    options.add()
    if host.SDNEXT:
        from . import sdnext_script

        sdnext_script.register()
    script_callbacks.on_cfg_denoiser(before)
    script_callbacks.on_cfg_denoised(after)
    script_callbacks.on_image_grid(grid)
    script_callbacks.on_app_started(api.serve)
    script_callbacks.on_ui_tabs(tab.tabs)
