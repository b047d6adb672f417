"""What both WebUIs' watches do around a sampler: read attention, hold a treatment, start the sampler once more.

Part of the WebUI hosts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import ref

from torch import nn

from ...aside import aside
from ...mitigations.base import Treatment
from ...mitigations.effect import Effect
from ...passes import left_alone, takes_over
from ...records import Attempt
from ...run import ENDED
from ...troubles import careful, in_words
from . import model
from .edits import Editor
from .places import Place
from .reading import Reader
from .sampling import Pass
from .session import Session

log = logging.getLogger("memguard")


class Again(BaseException):
    """Ends a sampler at its first model call, to be started with other noise. No error: nothing may swallow it."""


class Treated:
    """The treatment of the pass in progress.

    Args:
        session: of one press of Generate.

    Attributes:
        owner: returns the host's StableDiffusionProcessing that the session belongs to, None where that is gone.
        inner: that of the pass in progress, where it is another extension's inside of the generation.
        treatment: of the pass; None before its first step, and where nothing is changed.
        effect: what the treatment has changed so far.
        restarts: whether the pass's sampler can be started once more with other noise.
        reader: of attention, where somebody asks for it.

    """

    REPEATS = False  # whether the host repeats prompts to a common length

    def __init__(self, session: Session) -> None:
        self.session = session
        self.owner: Callable[[], Any] = lambda: None
        self.inner: Any = None
        self.treatment: Treatment | None = None
        self.effect: Effect | None = None
        self.restarts = False
        self._sampler: Any = None
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

    def own(self, p: Any) -> None:
        """Take whose session it is."""
        self.owner = ref(p)

    def place(self, p: Any) -> Place:
        """Return which pass of the generation is about to be sampled."""
        owner = self.owner()
        self.inner = None if owner is None or owner is p else p
        return model.place(p, None if self.inner is None else owner)

    def edit(self, network: nn.Module) -> None:
        """Take the network whose attention may be edited."""
        self._editor = Editor(network, self.REPEATS)

    def before_sampling(self, network: nn.Module, sampler: Any, running: bool = False) -> None:
        """A pass is about to be sampled.

        Args:
            network: that will be asked first.
            sampler: of the pass.
            running: whether the sampler has started; then it cannot start once more.

        """
        self.leave()
        self._sampler, self.restarts, self.reader = sampler, not running, None
        self.session.aside = partial(self.aside, network)
        if self.session.guard.attention or self.session.explain != "never":
            self.reader = Reader(network, partial(self._rows, who="read"), self.REPEATS)
        if running:
            if self.reader is not None:
                self._stack.enter_context(self.reader.installed())
            return
        for name in ("sample", "sample_img2img"):
            if hasattr(sampler, name):
                self._wrap(sampler, name)

    def prepared(self, sampler: Any) -> bool:
        """Whether ``before_sampling`` was called for a pass's sampler."""
        return self._sampler is sampler

    def aside(self, network: nn.Module) -> Any:
        """Return the block around every evaluation of ours; hosts add generators that are their own."""
        return aside(network)

    def carry(self, now: Pass, work: Callable[[], None], undo: Callable[[], None]) -> None:
        """Treat a call. An error of ours costs the mitigation, not the picture: ``undo`` takes back what was done."""
        if now.run.to_mitigate and not now.run.evidence:  # its verdict is that of an earlier pass
            self.alone(now, now.run.reason or ENDED)
        elif now.run.to_mitigate or (self.treatment is not None and self.treatment.guidance):
            with self.treating(now, undo), self.session.aside():
                work()

    @contextmanager
    def treating(self, now: Pass, undo: Callable[[], None] = lambda: None) -> Iterator[None]:
        """The guard around what a treatment does to the host's own calls: after an error it is over."""

        def failed(error: Exception) -> None:
            now.run.failed(error)
            if self.treatment is not None:
                over = f"the mitigation ended at model call {now.calls}, because of this: {in_words(error)}"
                now.run.learn(notes=(*now.run.report.notes, over))
            self.drop()
            undo()

        with careful(failed):
            yield

    def drop(self) -> None:
        """End the treatment in the midst of a call; what stands in the network goes when the sampler is done."""
        self.treatment = None
        if self._editor is not None:
            self._editor.drop()

    def refuse(self, now: Pass, why: str) -> None:
        """Say why a flagged run cannot be mitigated."""
        now.run.learn(attempts=(Attempt("none", changes=(why,)),))

    def alone(self, now: Pass, why: str) -> None:
        """Say why a run that took over a verdict goes on as it is."""
        left_alone(now.run, why) if takes_over(now.run) else self.refuse(now, why)

    def adopt(self, now: Pass, treatment: Treatment, made: Effect | None) -> None:
        """Take a treatment for the rest of the pass.

        Args:
            now: the pass.
            treatment: for it.
            made: what it has changed in a first call that was made again, and is used now.

        """
        self.treatment, self.effect = treatment, now.run.carry(treatment)
        if made is not None:
            self.effect.join(made)
        if treatment.edits:
            self.editor.edits, self.editor.effect = treatment.edits, self.effect
            self._stack.enter_context(self.editor.installed(self._rows, partial(self.treating, now)))

    def leave(self) -> None:
        """End the treatment; nothing of it stays in the network."""
        self._stack.close()
        self.treatment, self._editor, self.effect = None, None, None

    def expect(self, marks: Sequence[bool], sigma: float) -> None:
        """Say which rows of the call to come carry the prompt; the host may ask for them in slices, in this order."""
        self._marks, self._asked = marks, {}
        if self._editor is not None:
            self._editor.sigma = sigma
            self._editor.step += 1

    def finish(self) -> None:
        """Close the pass; its report says what could not be edited."""
        left = () if self._editor is None else tuple(self._editor.left)
        left += () if self.reader is None else tuple(self.reader.left)
        if left and self.session.now is not None:
            run = self.session.now.run
            run.learn(notes=(*run.report.notes, *left))
        self.leave()
        try:
            self.session.end()
        finally:  # sessions are kept for their reports; the network of another checkpoint must not be kept with them
            self._sampler, self.inner, self.reader, self.session.aside = None, None, None, aside

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
            with self._closed_by_errors(), ExitStack() as stack:
                stack.callback(self._stack.close)  # whatever ends the sampling, nothing stays in the network
                with self.session.careful():
                    self._stand(stack, sampler)
                try:
                    return sample(p, x, *args, **kwargs)
                except Again:
                    treatment, now = self.treatment, self.session.now
                    assert treatment is not None and treatment.noise is not None and now is not None
                    now.again()
                    noise, images = treatment.noise.to(x), treatment.images
                    moved = noise if images is None else x.index_copy(0, images, noise[images])
                    if self.effect is not None:
                        self.effect.changed("noise", x, moved)
                    return sample(p, moved, *args, **kwargs)

        sampled.memguard = self  # type: ignore[attr-defined]
        setattr(sampler, name, sampled)

    @contextmanager
    def _closed_by_errors(self) -> Iterator[None]:
        """Close the pass where an error of the host ends it, of which the host tells no script."""
        try:
            yield
        except Exception:
            with self.session.careful(over=True):
                self.finish()
            raise

    def _stand(self, stack: ExitStack, sampler: Any) -> None:
        """Put what reads and what bears witness into the network, for one sampling."""
        if self.reader is not None:
            stack.enter_context(self.reader.installed())
        denoiser = getattr(sampler, "model_wrap_cfg", None)
        if isinstance(denoiser, nn.Module):
            stack.callback(denoiser.register_forward_hook(self._witness).remove)

    def _witness(self, *_: Any) -> None:
        """The sampler's denoiser was called; where none of our functions were, there is no score."""
        with self.session.careful():
            self.session.current().unseen()
        self.cancel()

    def cancel(self) -> None:
        """End the sampling where policy "stop" has ended it; what an inner pass was to improve stays as it was."""
        if not self.session.stopped:
            return
        latent = getattr(self.inner, "init_latent", None)
        if latent is not None:
            self._sampler.last_latent = latent
        self.interrupt()

    def interrupt(self) -> None:
        """End the sampling at once, where the host was told to stop, as its own button does."""
        from modules import shared
        from modules.sd_samplers_common import InterruptedException

        if shared.state.interrupted or shared.state.skipped:
            raise InterruptedException
