"""What both WebUIs' watches do around a sampler: read attention, hold a treatment, start the sampler once more.

Part of the WebUI hosts; may import: memguard's core, torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import nn

from ...mitigations.base import Treatment
from ...records import Attempt
from .edits import Editor
from .first import Again
from .reading import Reader
from .sampling import Pass
from .session import Session

log = logging.getLogger("memguard")


class Treated:
    """The treatment of the pass in progress.

    Args:
        session: of one press of Generate.

    Attributes:
        treatment: of the pass; None before its first step, and where nothing is changed.
        restarts: whether the pass's sampler can be started once more with other noise.
        reader: of attention, where somebody asks for it and the host tells that a sampler starts.

    """

    REPEATS = False  # whether the host repeats prompts to a common length

    def __init__(self, session: Session) -> None:
        self.session = session
        self.treatment: Treatment | None = None
        self.restarts = False
        self._stack = ExitStack()
        self._editor: Editor | None = None
        self._marks: Sequence[bool] = ()
        self._asked: dict[str, int] = {}
        self.reader: Reader | None = None

    @property
    def editor(self) -> Editor:
        """The editor of the pass's network."""
        assert self._editor is not None
        return self._editor

    def edit(self, network: nn.Module) -> None:
        """Take the network whose attention may be edited."""
        self._editor = Editor(network, self.REPEATS)

    def before_sampling(self, p: Any, network: nn.Module) -> None:
        """A pass is about to be sampled.

        Args:
            p: the host's StableDiffusionProcessing.
            network: that will be asked first.

        """
        self.leave()
        self.reader = None
        if self.session.guard.attention or self.session.explain != "never":
            self.reader = Reader(network, partial(self._rows, who="read"), self.REPEATS)
        self.restarts = True
        for name in ("sample", "sample_img2img"):
            if hasattr(p.sampler, name):
                self._wrap(p.sampler, name)

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
        self._marks, self._asked = marks, {}
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

    def _rows(self, rows: int, named: dict[str, Any], who: str = "edit") -> Sequence[bool]:
        begun = self._asked.get(who, 0)
        self._asked[who] = begun + rows
        return self._marks[begun : begun + rows]

    def _wrap(self, sampler: Any, name: str) -> None:
        """Let a sampler be read, and started once more from the noise of a treatment."""
        sample = getattr(sampler, name)
        if getattr(sample, "memguard", None) is self:
            return  # hires asks twice

        def sampled(p: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            with ExitStack() as stack:
                stack.callback(self._stack.close)  # whatever ends the sampling, nothing stays in the network
                if self.reader is not None:
                    stack.enter_context(self.reader.installed())
                try:
                    return sample(p, x, *args, **kwargs)
                except Again:
                    treatment, now = self.treatment, self.session.now
                    assert treatment is not None and treatment.noise is not None and now is not None
                    now.again()
                    noise, images = treatment.noise.to(x), treatment.images
                    moved = noise if images is None else x.index_copy(0, images, noise[images])
                    return sample(p, moved, *args, **kwargs)

        sampled.memguard = self  # type: ignore[attr-defined]
        setattr(sampler, name, sampled)
