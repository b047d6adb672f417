"""Which of the two hosts this is, and a session of it. May import: the WebUI, memguard.hosts."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modules import paths, sd_models, shared

from ..memguard.hosts.webui import known, model, profiles
from ..memguard.hosts.webui.session import Session
from ..memguard.hosts.webui.settings import Settings
from ..memguard.memory import PromptMemory, remembered

FORGE = importlib.util.find_spec("modules_forge") is not None and importlib.util.find_spec("backend") is not None


def adapter() -> Any:
    """Return the adapter's module."""
    if FORGE:
        from ..memguard.hosts import forge as mine
    else:
        from ..memguard.hosts import a1111 as mine
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
        ValueError: for a setting out of range, or a file that cannot be used.

    """
    mine = adapter()
    more: dict[str, Any] = {"finished": _remember} if enough is None else {"enough": enough}
    guard = settings.guard(folder()) if guard is None else guard
    more |= {"explain": settings.explain, "notes": profiles.trouble(folder())}
    return mine.Watch(Session(guard, mine.NAME, mine.version(), mine.stop, **more))


def stop() -> None:
    """End the generation that is about to begin, by policy "stop"."""
    adapter().stop()


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
