"""What the cross-attention layers of a denoiser compute, kept call by call until it is asked for."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from ...attributions.attention import Projected
from ...troubles import careful, in_words
from .rows import OWN, Unscored

log = logging.getLogger("memguard")

UNCALLED = "the attention cannot be read: no cross-attention layer of the model was called"


class Probable(Protocol):
    """What gives the attention of a layer."""

    def probabilities(self) -> Tensor:
        """Return the mean over the heads, float32 [B, positions or 1, tokens]."""


class Reading:
    """What the cross-attention layers of the last model calls projected.

    Two calls are kept, since a step may be predicted in two: which one is meant is told by its text.

    Attributes:
        layers: by name, in the order of execution.
        broken: why nothing can be read any more.
        wants: whether calls are read now.
        positions: whether probabilities are wanted position by position.

    """

    def __init__(self, layers: dict[str, Any]) -> None:
        self.layers = layers
        self.calls: deque[tuple[Tensor | None, dict[str, Any]]] = deque(maxlen=2)
        self._again = False  # whether a call of our own is read
        self.broken = ""
        self.wants: Callable[[], bool] = lambda: True
        self.positions = False

    @property
    def reads(self) -> bool:
        """Whether a call that is made now is read."""
        return not self.broken and (self._again or (not OWN.get() and self.wants()))

    @contextmanager
    def again(self) -> Iterator[None]:
        """Read the call that is made inside, although it is our own: the first one under a treatment."""
        self._again = True
        self.calls.clear()
        try:
            yield
        finally:
            self._again = False

    def latest(self) -> Mapping[str, Probable]:
        """Return all rows of the last call, and forget it; see ``take``."""
        text = self.calls[-1][0] if self.calls else None
        if text is None:
            self._refuse()
            raise Unscored(UNCALLED)
        return self.take(slice(None), text)

    def take(self, rows: slice, text: Tensor) -> Mapping[str, Probable]:
        """Return rows of a call, layer by layer in the order of execution, and forget it.

        Args:
            rows: of the call.
            text: its encoded prompts, [B, tokens, d].

        Raises:
            Unscored: if a layer was not called, because something else stands in its place, or none was.

        """
        number = next((n for n, (known, _) in enumerate(self.calls) if known is text), None)
        if number is None:
            self._refuse()
            raise Unscored(UNCALLED)
        _, found = self.calls[number]
        del self.calls[number]
        return self.rows(found, rows, text)

    def rows(self, found: dict[str, Any], rows: slice, text: Tensor) -> Mapping[str, Probable]:
        """Return rows of a call by what was kept of it.

        Raises:
            Unscored: as ``take``.

        """
        self._refuse()
        return self._rows(found, rows, text)

    def _refuse(self) -> None:
        if self.broken:
            raise Unscored(f"the attention cannot be read: {self.broken}")

    def _rows(self, found: dict[str, Any], rows: slice, text: Tensor) -> Mapping[str, Probable]:
        if not found:
            raise Unscored(UNCALLED)
        missing = next((name for name in self.layers if len(found.get(name, ())) < 2), None)
        if missing is not None:
            raise Unscored(f"the attention of {missing} cannot be read: its projections are fused or replaced")
        taken = {}
        for name, layer in self.layers.items():
            projected = Projected(found[name]["q"], found[name]["k"], int(layer.heads), float(layer.scale))
            if len(projected.q) != len(text):
                raise Unscored(
                    f"the attention of {name} cannot be read: it has {len(projected.q)} rows for {len(text)} prompts"
                )
            taken[name] = projected.rows(rows)
        return taken

    def guarded(self, what: Callable[..., Any], *args: Any) -> Any:
        """Return what a function returns; after an error None, and nothing is read any more."""
        with careful(self.failed):
            return what(*args)
        return None

    def begin(self, text: Any) -> None:
        """A call with this text begins."""
        self.calls.append((text if isinstance(text, Tensor) else None, {}))

    def keep(self, where: str, name: str, output: Any) -> None:
        """Take the queries ("q") or the keys ("k") of a layer."""
        if self.reads and self.calls:
            self.calls[-1][1].setdefault(name, {})[where] = output.detach()

    def failed(self, error: Exception) -> None:
        """Nothing is read any more."""
        log.warning("the attention cannot be read: %s", error, exc_info=error)
        self.broken = in_words(error)
