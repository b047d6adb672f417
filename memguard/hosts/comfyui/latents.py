"""Which report belongs to which latent, however much of a workflow came from the cache.

A cached MemGuard node hands out an old handle, and two samplers may share one guarded model, so a report is filed under
the fingerprint of the latent that the run returned. Part of the ComfyUI host.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch

from ...records import Finding, Report
from .kept import KeptMaps

KEPT = 128  # runs; a report is a few kilobytes and a small map
NOT_WATCHED = "not watched: no MemGuard node is connected, or it is bypassed"
KEPT_MAPS = 32  # runs; the page's maps of one are up to a megabyte


def fingerprint(latent: Any) -> str | None:
    """Return the hash of a latent's float32 values, of a video and its sound (nested) as samplers pack them.

    None for what is no tensor.
    """
    if getattr(latent, "is_nested", False):
        latent = torch.cat([part.flatten(1) for part in latent.unbind()], 1)
    if not isinstance(latent, torch.Tensor):
        return None
    values = latent.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha1(values.numpy().tobytes(), usedforsecurity=False).hexdigest()


class ReportStore:
    """The reports of the last runs, by guard settings and latent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, tuple[str, str | None, str | None, Report]] = OrderedDict()
        self._maps: OrderedDict[str, KeptMaps] = OrderedDict()

    def put(self, settings: str, latent: Any, prompt_id: str | None, report: Report) -> None:
        """File a report; the oldest goes when there are too many."""
        row = (settings, fingerprint(latent), prompt_id, report)
        with self._lock:
            self._runs[report.run] = row
            while len(self._runs) > KEPT:
                self._runs.popitem(last=False)

    def keep_maps(self, run: str, maps: KeptMaps) -> None:
        """Keep a run's maps for the page, in little memory; the oldest run's go when there are too many."""
        small = maps.packed()
        with self._lock:
            self._maps[run] = small
            while len(self._maps) > KEPT_MAPS:
                self._maps.popitem(last=False)

    def maps_of(self, run: str) -> KeptMaps | None:
        """Return the packed maps of a run, or None."""
        with self._lock:
            return self._maps.get(run)

    def find(self, settings: str, latent: Any, prompt_id: str | None) -> Report:
        """Return the report of the run that made a latent, or a report that says why there is none."""
        key = fingerprint(latent)
        with self._lock:
            rows = list(self._runs.values())
        made = [row for row in rows if key is not None and row[1] == key]
        own = [row[3] for row in made if row[0] == settings]
        if own:
            return own[-1]
        here = [row[3] for row in rows if row[0] == settings and prompt_id is not None and row[2] == prompt_id]
        if len(here) == 1:
            note = "the latent was changed after sampling; this is the only guarded run of this prompt"
            return replace(here[0], notes=(*here[0].notes, note))
        if made:
            return missing("another MemGuard node watched the run that made this latent; connect its handle")
        if here:
            return missing("the latent was changed after sampling, and several guarded runs could have made it")
        return missing(
            "no guarded run made this latent: the sampler made no step (denoise 0), or MemGuard does not stand "
            "between the model and the sampler"
        )


def missing(reason: str) -> Report:
    """Return a report without findings that says why."""
    return Report(run="", host="comfyui", findings=(Finding("memguard", status=reason),))


store = ReportStore()
