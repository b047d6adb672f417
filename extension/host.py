"""Which of the hosts this is, and a session of it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules import paths, sd_models, shared

from ..memguard.hosts.webui import known, model, profiles
from ..memguard.hosts.webui.session import Session
from ..memguard.hosts.webui.settings import Settings
from ..memguard.memory import PromptMemory, remembered
from ..memguard.passes import Passes
from ..memguard.troubles import Told

log = logging.getLogger("memguard")
if not log.isEnabledFor(logging.WARNING):  # Forge Neo prints errors alone, and reasons refer to the log
    log.setLevel(logging.WARNING)


def _name_of_host() -> str:
    """Return "a1111", "forge", "forge-neo", "reforge" or "sdnext"."""
    if Path(paths.script_path, "modules", "processing_diffusers.py").is_file():
        return "sdnext"
    if importlib.util.find_spec("modules_forge") is None:
        return "a1111"
    if importlib.util.find_spec("backend") is None:
        return "reforge"
    return "forge-neo" if _forge().version == "neo" else "forge"


def _forge() -> Any:
    """Return what a Forge says of its version."""
    return importlib.import_module("modules_forge.forge_version")


NAME = _name_of_host()
FORGE = NAME in ("forge", "forge-neo")  # one adapter fits both
SDNEXT = NAME == "sdnext"
if SDNEXT:
    from . import sdnext
SAID = "_memguard_said"  # attribute of a StableDiffusionProcessing that takes no comments: what is to be said of it
REFORGE = "reForge tells MemGuard of none of the model's predictions, so nothing can be scored here"
_passes = Passes()


class Unknown(Told):
    """A WebUI, or a version of one, that MemGuard does not know."""


def adapter() -> Any:
    """Return the adapter's module.

    Raises:
        Unknown: where the host is not what the adapter was written for.

    """
    if NAME == "reforge":
        raise Unknown(REFORGE)
    try:
        if SDNEXT:
            from ..memguard.hosts import sdnext as mine
        elif FORGE:
            from ..memguard.hosts import forge as mine
        else:
            from ..memguard.hosts import a1111 as mine
    except (ImportError, AttributeError) as error:
        log.exception("the adapter for this WebUI cannot be imported")
        raise Unknown("MemGuard does not know this version of the WebUI; the log names what it misses") from error
    return mine


def folder() -> Path:
    """Return where profiles and neuron sets lie."""
    return profiles.register(paths.models_path)


def watch(settings: Settings, enough: Callable[[], None] | None = None, guard: Any = None) -> Any:
    """Return the host's watch of a new session; ``enough`` makes it a check, which is not remembered.

    Args:
        settings: of the session.
        enough: ends the sampling, once all is scored.
        guard: in place of the settings' own.

    Raises:
        Told: for a setting out of range, a file that cannot be used, or a WebUI that MemGuard does not know.

    """
    mine = adapter()
    more: dict[str, Any] = {"finished": _remember, "passes": _passes} if enough is None else {"enough": enough}
    guard = settings.guard(folder()) if guard is None else guard
    more |= {"explain": settings.explain, "notes": profiles.trouble(folder())}
    return mine.Watch(Session(guard, NAME, version(), stop, **more))


def version() -> str:
    """Return the host's version."""
    if SDNEXT:
        return sdnext.version()
    from modules import launch_utils

    release = _forge().release if NAME == "forge-neo" else ""
    return f"{launch_utils.git_tag()}{release and '-'}{release}"


class _Item(int):
    """Truth that is not ``True``: an interrupt of ours, which ends one item of a job and not the job."""


OURS = _Item(1)


def stop() -> None:
    """End the item of a job that is generated now, by policy "stop": a cell of a plot, a picture of a list."""
    if SDNEXT:  # whose pipeline call is ended by the adapter
        return
    if not shared.state.interrupted:
        shared.state.interrupted = OURS


def comment(p: Any, text: str) -> None:
    """Say something below the pictures of a generation."""
    if SDNEXT:
        setattr(p, SAID, (*getattr(p, SAID, ()), text))
    else:
        p.comment(text)


def go_on() -> None:
    """Let a job go on with its next item, unless a person has interrupted it."""
    if shared.state.interrupted is OURS:
        shared.state.interrupted = False


def job() -> float:
    """Return what tells jobs apart."""
    if SDNEXT:
        return sdnext.job()
    return float(shared.state.time_start or 0)


def fingerprint() -> str:
    """Return the fingerprint of the loaded checkpoint, "" where none is loaded."""
    return _name(shared.sd_model)


def peek() -> str:
    """Return the same, and load no checkpoint for it."""
    return _name(sd_models.model_data.sd_model)


def _name(engine: Any) -> str:
    folder()  # who asks for the name looks for profiles there
    network = adapter().network(engine)
    return "" if network is None else model.name_of(network, engine)


def memory() -> PromptMemory:
    """Return the memory of known prompts."""
    return known.memory(paths.data_path)


def engine() -> Any:
    """Return the chosen checkpoint's model, loaded; in Forge on its main thread only."""
    if FORGE:
        sd_models.forge_model_reload()
    return shared.sd_model


@contextmanager
def schedule_kept(engine: Any) -> Iterator[None]:
    """Keep the noise levels that Forge changes for a zero terminal SNR, and puts back where sampling is not ended."""
    objects = getattr(engine, "forge_objects", None)
    predictor = None if objects is None else objects.unet.model.predictor
    before = getattr(predictor, "sigmas", None)
    try:
        yield
    finally:
        if before is not None and predictor.sigmas is not before:
            predictor.set_sigmas(before)


def _remember(report: Any) -> str | None:
    return remembered(memory, report, checkpoint)


def checkpoint() -> str:
    """Return the file name of the loaded checkpoint."""
    info = getattr(shared.sd_model, "sd_checkpoint_info", None)
    return str(getattr(info, "name", "") or "")


def loaded() -> str:
    """Return the title of the loaded checkpoint, and load none for it; "" for none."""
    info = getattr(sd_models.model_data.sd_model, "sd_checkpoint_info", None)
    return str(getattr(info, "name_for_extra", "") or "")


def chosen() -> str:
    """Return the title of the checkpoint that is chosen on the page, which the host may not have loaded yet."""
    info = sd_models.get_closet_checkpoint_match(str(shared.opts.sd_model_checkpoint or ""))
    return str(getattr(info, "name_for_extra", "") or "")
