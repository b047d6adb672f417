"""What both WebUIs' watches do with a treatment: hold it for a pass, edit the network, start the sampler once more.

Part of the WebUI hosts; may import: memguard's core, torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from torch import nn

from ...mitigations.base import Treatment
from ...records import Attempt
from .edits import Editor
from .first import Again
from .session import Pass, Session

log = logging.getLogger("memguard")


class Treated:
    """The treatment of the pass in progress.

    Args:
        session: of one press of Generate.

    Attributes:
        treatment: of the pass; None before its first step, and where nothing is changed.
        restarts: whether the pass's sampler can be started once more with other noise.

    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.treatment: Treatment | None = None
        self.restarts = False
        self._stack = ExitStack()
        self._editor: Editor | None = None
        self._marks: Sequence[bool] = ()
        self._asked = 0

    @property
    def editor(self) -> Editor:
        """The editor of the pass's network."""
        assert self._editor is not None
        return self._editor

    def edit(self, network: nn.Module) -> None:
        """Take the network whose attention may be edited."""
        self._editor = Editor(network)

    def before_sampling(self, p: Any) -> None:
        """A pass is about to be sampled."""
        self.leave()
        self._wrap(p.sampler)

    def carry(self, now: Pass, work: Callable[[], None]) -> None:
        """Treat a call. An error of ours costs the mitigation, not the picture."""
        if now.run.guard.policy != "mitigate":
            return
        try:
            work()
        except Again:
            raise
        except Exception as error:
            log.warning("%s: %s", type(error).__name__, error)
            now.run.failed(error)
            self.leave()

    def refuse(self, now: Pass, why: str) -> None:
        """Say why a flagged run cannot be mitigated."""
        now.run.learn(attempts=(Attempt("none", changes=(why,)),))

    def adopt(self, treatment: Treatment, network: nn.Module) -> None:
        """Take a treatment for the rest of the pass."""
        self.treatment = treatment
        if treatment.edits:
            self.editor.edits = treatment.edits
            self._stack.enter_context(self.editor.installed(self._rows))

    def leave(self) -> None:
        """End the treatment; nothing of it stays in the network."""
        self._stack.close()
        self.treatment, self._editor = None, None

    def expect(self, marks: Sequence[bool], sigma: float) -> None:
        """Say which rows of the call to come carry the prompt; the host may ask for them in slices, in this order."""
        self._marks, self._asked = marks, 0
        if self._editor is not None:
            self._editor.sigma = sigma
            self._editor.step += 1

    def finish(self) -> None:
        """Close the pass; its report says what could not be edited."""
        left = () if self._editor is None else tuple(self._editor.left)
        if left and self.session.now is not None:
            run = self.session.now.run
            run.learn(notes=(*run.report.notes, *left))
        self.leave()
        self.session.end()

    def _rows(self, rows: int, named: dict[str, Any]) -> Sequence[bool]:
        begun, self._asked = self._asked, self._asked + rows
        return self._marks[begun : begun + rows]

    def _wrap(self, sampler: Any) -> None:
        """Let a sampler be started once more, from the noise of a treatment."""
        sample = sampler.sample
        self.restarts = True
        if getattr(sample, "memguard", None) is self:
            return  # hires asks twice

        def sampled(p: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return sample(p, x, *args, **kwargs)
            except Again:
                treatment, now = self.treatment, self.session.now
                assert treatment is not None and treatment.noise is not None and now is not None
                now.calls = 0
                noise, images = treatment.noise.to(x), treatment.images
                return sample(p, noise if images is None else x.index_copy(0, images, noise[images]), *args, **kwargs)
            finally:
                self._stack.close()  # whatever ended the sampling, nothing stays in the network

        sampled.memguard = self  # type: ignore[attr-defined]
        sampler.sample = sampled
