"""The script in SD.Next: hooks that this host alone has. May import: the WebUI.

SD.Next calls no ``postprocess`` for a generation that was interrupted, and tells of the end of each in a callback. An
interrupt of ours would hand out a preview of the latents, so a generation that policy "stop" ends goes on without
batches and pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from modules import script_callbacks

from ..memguard.hosts.webui.places import SCORE
from . import host, jobs, sdnext
from .controls import HELD
from .webui import MemGuardScript

SCORES = "_memguard_scores"  # attribute of a processing: what each picture of the batch is saved with


class SDNextScript(MemGuardScript):
    """Watches every generation while its box is ticked."""

    def __init__(self) -> None:
        self.on_after_component_elem_id: list[tuple[str, Callable[[Any], None]]] = []  # the base's is every script's

    def on_after_component(self, callback: Callable[[Any], None], *, elem_id: str) -> None:
        """Call a function with a component of the page, once it is made."""
        self.on_after_component_elem_id.append((elem_id, callback))

    def after_component(self, component: Any, **kwargs: Any) -> None:
        """Nothing is done; without it the host does not ask the list."""

    def before_process_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Let no further batch be made of a generation that was stopped."""
        if _stopped(p):
            p.prompts = []

    def postprocess_batch_list(self, p: Any, pp: Any, *args: Any, **kwargs: Any) -> None:
        """Let no picture out of a generation that was stopped: that of an earlier pass, or of latents half done."""
        if _stopped(p):
            pp.images = []

    def postprocess_image(self, p: Any, pp: Any, *args: Any) -> None:
        """Name a detailer's passes, and save a picture with its own score: the host would write those of all."""
        self.postprocess_image_after_composite(p, *args)
        told = p.extra_generation_params
        if isinstance(told.get(SCORE), list):
            setattr(p, SCORES, told[SCORE])
        scores = getattr(p, SCORES, ())
        if SCORE in told and p.batch_index < len(scores):
            told[SCORE] = scores[p.batch_index]

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        """Close the generation, and write below the gallery what other hosts take as comments."""
        super().postprocess(p, processed, *args)
        processed.comments = "\n".join(filter(None, [processed.comments, *getattr(p, host.SAID, ())]))


def _stopped(p: Any) -> bool:
    watch = getattr(p, HELD, None)
    return watch is not None and watch.owner() is p and bool(watch.session.stopped)


def _ended(p: Any) -> None:
    """Close a generation of whose end no script was told: somebody interrupted it, or it failed."""
    if jobs.open_of(p):
        MemGuardScript().postprocess(p, SimpleNamespace(job_timestamp=sdnext.timestamp(), images=[], infotexts=[]))


def register() -> None:
    """Register the callbacks of this host."""
    script_callbacks.on_before_process(sdnext.begun)
    script_callbacks.on_after_process(_ended)
