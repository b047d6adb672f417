"""When the attention of a run is read: at the scored calls for a detector, at every call for maps.

Part of the ComfyUI host.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.samplers
from torch import Tensor

from ...aside import aside
from ...troubles import Told, in_words
from . import roles
from .attention import AttentionReader, Careful, Unreadable
from .calls import alone, is_compiled
from .explanation import Explanation

log = logging.getLogger("memguard")

WINDOWS = "attention is not read within context windows"
LEFT = (
    "the attention of {} layers cannot be read: another node, or the model itself, replaces them or changes their rows"
)


class Reading:
    """The attention of one run.

    Args:
        guider: of the run.
        for_detector: whether a detector asks for it.
        explanation: of the run; None where nobody asks for words and maps.
        careful: the guard around the hooks of reading; None keeps an error's words as the reason.

    Attributes:
        reader: what was read; None before the first call, or where nothing can be read.
        rows: of the network that reading cost: a compiled network is called once more as it is.

    """

    def __init__(
        self, guider: Any, for_detector: bool, explanation: Explanation | None, careful: Careful | None = None
    ) -> None:
        self.guider, self.for_detector, self.explanation, self._careful = guider, for_detector, explanation, careful
        self.reader: AttentionReader | None = None
        self.unread = ""
        self.rows = 0
        self._now = False  # whether this call is read
        self._apart = False  # whether it is read by a call of its own

    def begin(self, wanted: bool, ends: bool, options: dict[str, Any], windows: bool) -> dict[str, Any]:
        """Return the model_options of the next call.

        Args:
            wanted: whether the call is scored.
            ends: whether it is one of the last step.
            options: the sampler's.
            windows: whether predictions are put together from windows.

        """
        explained = self.explanation is not None and (self.explanation.taken or self.reader is None)
        compiled = is_compiled(options)
        self._now = (self.for_detector and wanted) or (explained and (wanted or ends or not compiled))
        if not self._now or not self._ready(windows):
            self._now = False
            return options
        self._apart = compiled
        assert self.reader is not None
        self.reader.expect((), ())  # until the call says what it evaluates
        return options if compiled else self.reader.options(options)

    def expect(self, conds: list[Any], x: Tensor) -> None:
        """Take what CALC_COND_BATCH is about to evaluate, and for which latents."""
        if self._now and not self._apart and self.reader is not None:
            found = [i for i, each in enumerate(conds) if each is not None and self._is_prompt(each)]
            if found and not self.reader.masses:
                self.reader.expect(conds[found[0]], found, x)

    def end(self, x: Tensor, sigma: Tensor, options: dict[str, Any]) -> None:
        """Read a call that went through a compiled network: once more, as it is, so that no latent changes."""
        if not (self._now and self._apart) or self.reader is None:
            return
        conds = self.guider.conds[roles.PROMPT]
        self.reader.expect(conds, [0], x)
        with aside(x):
            comfy.samplers.calc_cond_batch(
                self.guider.inner_model, [conds], x, sigma, self.reader.options(alone(options))
            )
        self.rows += len(x) * len(conds)

    def evidence(self, summary: Tensor | None = None) -> dict[str, Any]:
        """Return what StepEvidence holds of this call's attention."""
        if not self.for_detector:
            return {}
        masses = {} if self.reader is None or not self._now else self.reader.masses
        if self.reader is not None and self.reader.left:
            return {"unread": LEFT.format(len(self.reader.left))}  # a mean over fewer layers is another score
        if len(masses) == 1 and len(self.guider.conds[roles.PROMPT]) == 1:
            return {"attention": next(iter(masses.values())), "summary": summary}
        parts = len(self.guider.conds.get(roles.PROMPT, ()))
        combined = f"the prompt is combined of {parts} parts, and their attention is not one" if parts > 1 else ""
        reason = self.unread or (self.reader.reason if self.reader is not None else "")
        return {"unread": reason or combined or "attention was not read"}

    def failed(self, error: Exception) -> None:
        """Read no more, and keep why."""
        self.unread, self._now = in_words(error), False
        if not isinstance(error, Told):
            log.warning("attention: %s: %s", type(error).__name__, error, exc_info=error)

    def _ready(self, windows: bool) -> bool:
        if windows:
            self.unread = WINDOWS
        if self.reader is None and not self.unread:
            try:
                self.reader = AttentionReader(self.guider.inner_model, self.explanation is not None, self._careful)
            except Unreadable as reason:
                self.unread = str(reason)
        return not self.unread

    def _is_prompt(self, conds: Any) -> bool:
        return roles.role_of(conds, self.guider) == roles.PROMPT
