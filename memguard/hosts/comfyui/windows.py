"""Context windows: long latents are predicted in pieces, and only what is fused of them is the model's prediction.

Part of the ComfyUI host; imports nothing.
"""

from __future__ import annotations

from typing import Any, Protocol

HANDLER = "context_handler"


class Collector(Protocol):
    """Who takes predictions while it is armed: a Sampling."""

    armed: bool

    def capture(self, predictions: Any, *args: Any) -> None:
        """Take predictions and the arguments that they were made with."""


def past_windows(args: tuple[Any, ...], sampling: Collector) -> tuple[Any, ...]:
    """Return the arguments of a model call with a context handler that hands over whole predictions."""
    options = args[2] if len(args) > 2 else {}
    if HANDLER not in options or options[HANDLER] is None:
        return args
    return (*args[:2], {**options, HANDLER: _WholePredictions(options[HANDLER], sampling)}, *args[3:])


class _WholePredictions:
    """A context handler that collects predictions after the windows were fused; inside, prompts lose their identity."""

    def __init__(self, handler: Any, sampling: Collector) -> None:
        self._handler = handler
        self._sampling = sampling

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)

    def execute(self, calc: Any, *args: Any) -> Any:
        armed, self._sampling.armed = self._sampling.armed, False
        try:
            predictions = self._handler.execute(calc, *args)
        finally:
            self._sampling.armed = armed
        if armed:
            self._sampling.capture(predictions, *args)
        return predictions
