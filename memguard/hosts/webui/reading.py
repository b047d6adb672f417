"""Cross-attention, read beside the network's own calls: queries and keys are what its projections give out.

Any attention optimisation may work with them; nothing is replaced. Hooks stand in the network for one sampling, and
take something only between ``arm`` and ``disarm``, so that calls of our own are not read.

Part of the WebUI hosts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...attributions import attention
from ...attributions.maps import MapTally
from ...attributions.moment import Encoded
from ...mitigations.base import Treatment
from ...troubles import careful, in_words
from .edits import Marks
from .layers import cross_layers

log = logging.getLogger("memguard")

NO_LAYERS = "this model has no cross-attention of its own: prompt and picture share their attention"
EDITED = "attention cannot be read where a mitigation edits it"
SEVERAL = "the prompt is joined of several by AND, and their attention is not one"


class Reader:
    """Reads the attention of the prompt's rows.

    Args:
        network: the UNet.
        marks: tells which rows of a call carry the prompt.
        repeats: whether the host repeats a prompt to a common length (Forge), or appends to it (A1111).

    Attributes:
        masses: of the call that was read last: layer -> mass [B, tokens].
        tally: what maps need, of all calls that were read for maps; None before the first.
        reason: why nothing could be read.
        left: what could not be read, for the report.

    """

    def __init__(self, network: nn.Module, marks: Marks, repeats: bool = False) -> None:
        self.network, self.layers, self._marks, self.repeats = network, cross_layers(network), marks, repeats
        self.masses: dict[str, Tensor] = {}
        self.tally: MapTally | None = None
        self.reason = "" if self.layers else NO_LAYERS
        self.left: dict[str, None] = {}
        self._armed: tuple[int, int, bool] | None = None
        self._found: dict[str, list[Tensor]] = {}
        self._now: dict[tuple[str, str], Tensor] | None = None
        self._rows: Tensor | None = None
        self._size = (0, 0)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand in the network for the time of the block."""
        with ExitStack() as stack:
            stack.callback(self.network.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            stack.callback(self.network.register_forward_hook(self._end, always_call=True).remove)
            for name, layer in self.layers.items():
                for kind in ("to_q", "to_k"):
                    hook = partial(self._keep, (name, kind))
                    stack.callback(getattr(layer, kind).register_forward_hook(hook).remove)
            yield

    def arm(self, images: int, tokens: int, with_maps: bool) -> None:
        """Read the model call to come.

        Args:
            images: rows that carry the prompt, one for each image.
            tokens: columns of the prompt.
            with_maps: whether to keep maps as well.

        """
        self.masses, self._found = {}, {}
        self._armed = None if self.reason else (images, tokens, with_maps)

    def evidence(self, summary: Tensor | None) -> dict[str, Any]:
        """Return what StepEvidence holds of the attention of the call that was read.

        Args:
            summary: columns of EOS and padding, bool [B or 1, tokens]; None where they are not known.

        """
        if self.left:  # a score of fewer layers would be another one
            return {"unread": next(iter(self.left))}
        if self.masses:
            return {"attention": self.masses, "summary": summary}
        return {"unread": self.reason or "attention was not read"}

    def skip(self, why: str) -> None:
        """Say why the call to come is not read."""
        self.masses, self._armed = {}, None
        self.reason = self.reason or why

    @contextmanager
    def own(self, images: int, tokens: int) -> Iterator[None]:
        """Read a call of ours in the block, which holds the prompt's rows alone; its masses stand there afterwards."""
        before, self._marks = self._marks, lambda rows, named: rows * [True]
        self.arm(images, tokens, False)
        try:
            yield
        finally:
            self._marks = before
            self.disarm()

    def treated(
        self, treatment: Treatment, prompt: Encoded, predict: Callable[[], Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return a prediction under a treatment, and the attention of that very call as fields of StepEvidence.

        Args:
            treatment: of the call.
            prompt: that the call is made with.
            predict: asks the network for the prompt's rows.

        """
        if treatment.edits:  # they change what becomes of queries and keys, and those alone are read
            return predict(), {"unread": EDITED}
        with self.own(*prompt.text.shape[:2]):
            found = predict()
        return found, self.evidence(None)

    def disarm(self) -> None:
        """End the model call that is read."""
        armed, self._armed, self._now = self._armed, None, None
        if armed is None:
            return
        images, _, with_maps = armed
        found = {name: torch.cat(parts) for name, parts in self._found.items()}
        self._found = {}
        fit = {name: each for name, each in found.items() if len(each) == images}
        if not fit:
            self.reason = "the network was not asked for one row per image"
            return
        if len(fit) < len(found):
            self.left[f"attention of {len(found) - len(fit)} layers was not read: their rows are not the images"] = None
        found = fit
        self.masses = {name: attention.mass(each) for name, each in found.items()}
        if with_maps:
            self.tally = self.tally or MapTally(self._size)
            self.tally.add(found)

    def _begin(self, network: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._armed is None or not args:
            return
        with careful(self._failed):
            x = args[0]
            self._size, self._now = (x.shape[-2], x.shape[-1]), {}
            marks = self._marks(len(x), named)
            self._rows = torch.tensor([i for i, mark in enumerate(marks) if mark], device=x.device, dtype=torch.long)

    def _keep(self, key: tuple[str, str], _module: Any, _inputs: Any, output: Tensor) -> None:
        with careful(self._failed):
            if self._now is not None:  # the first output only: an edit lets the projections give out what it made
                self._now.setdefault(key, output.detach())

    def _end(self, *_: Any) -> None:
        with careful(self._failed):
            now, self._now = self._now, None
            if now is not None and self._armed is not None and self._rows is not None and len(self._rows):
                self._take(now, self._armed[1])

    def _take(self, now: dict[tuple[str, str], Tensor], tokens: int) -> None:
        assert self._rows is not None
        for name, layer in self.layers.items():
            q, k = now[name, "to_q"][self._rows], now[name, "to_k"][self._rows]
            found = attention.Projected(q, k, int(layer.heads)).probabilities()
            found = attention.fold(found, tokens) if self.repeats else found[..., :tokens]
            self._found.setdefault(name, []).append(found)

    def _failed(self, error: Exception) -> None:
        """An error of ours: the picture must not be lost for it."""
        log.warning("%s: %s", type(error).__name__, error, exc_info=error)
        self.reason = self.reason or f"attention was not read: {in_words(error)}"
        self._armed = self._now = None
