"""Which earlier run a run continues: by the conditioning of its prompt, by its latent, and by the graph before it.

A latent that was upscaled, or decoded and encoded again, is another tensor; the graph still tells which sampler's
picture it is. A detailer's samplers have the prompt's own conditioning. Part of the ComfyUI host.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from ...guard import Run
from ...passes import Pass, Passes
from . import graph, roles, screen
from .latents import fingerprint

UNGUARDED = (
    "node {} samples on from this picture without MemGuard, so that pass is neither judged nor treated; give it the "
    "model that comes out of MemGuard"
)

passes = Passes()


def prompt_key(conds: Any) -> str:
    """Return what is equal for equal prompts: a hash of all vectors of a guider's positive conditionings."""
    found = hashlib.sha1(usedforsecurity=False)
    for cond in conds or ():
        vectors = cond.get("cross_attn")
        if vectors is None:
            return ""
        found.update(f"{fingerprint(vectors)}/{fingerprint(cond.get('pooled_output'))};".encode())
    return found.hexdigest() if conds else ""


class Place:
    """One run among those of its prompt id.

    Args:
        run: that begins.
        guider: of the run, with the conditionings that nodes gave to it.
        latent: samples that it starts from.

    """

    def __init__(self, run: Run, guider: Any, latent: Any) -> None:
        self.run = run
        self.key = prompt_key(guider.conds.get(roles.PROMPT))
        self.prompt_id, self.node_id = screen.place()
        nodes = screen.running_prompt(self.prompt_id)
        self._after = graph.unguarded_after(nodes, self.node_id)
        empty = not torch.count_nonzero(latent)
        starts = {self._made_by(node) for node in graph.painted_before(nodes, self.node_id, empty)}
        if empty:  # noise alone continues no run of the same prompt; a picture may still come in beside it
            run.earlier = passes.before(self.prompt_id, "", starts, owner=screen.owner())
        else:
            starts |= {mark for mark in (fingerprint(latent),) if mark is not None}
            run.earlier = passes.before(self.prompt_id, self.key, starts, run.report.model, screen.owner())

    @property
    def same_prompt(self) -> bool:
        """Whether the earlier run had this run's prompt."""
        return self.run.earlier is not None and self.run.earlier.prompt == self.key != ""

    def notes(self) -> tuple[str, ...]:
        """Return what is to be said of a flagged run's picture: samplers that go on from it and that nobody watches."""
        if not self.run.report.flagged:
            return ()
        return tuple(UNGUARDED.format(node) for node in self._after)

    def leave(self, latent: Any) -> None:
        """Keep the run, which has ended and returned a latent, for those that continue it."""
        made = {mark for mark in (fingerprint(latent),) if mark is not None}
        if self.node_id is not None:
            made.add(self._made_by(self.node_id))
        passes.add(Pass.of(self.run, self.prompt_id, self.key, made, screen.owner()))

    def _made_by(self, node_id: str) -> str:
        return f"{self.prompt_id}/{node_id}"
