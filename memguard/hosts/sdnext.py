"""SD.Next: a pipeline of diffusers inside, which the diffusers host watches; the WebUI's session is around it.

The host makes the arguments of a pipeline call in one function and calls the pipeline next, whichever one it is by
then: that of img2img, the second pass's, the refiner's, a detailer's. So a pass begins where that function returns and
ends with the call. The function stands replaced in the host's module as long as a generation is watched.

An AssertionError is the host's own way to end a pipeline call. Its interrupt would hand out a preview of the latents.

May import: the WebUI's modules, memguard's core, the diffusers host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import ref

from modules import processing_diffusers, prompt_parser

from ..guard import MemorizationStop
from ..passes import left_alone
from ..run import ENDED
from .diffusers.hooks import listening
from .diffusers.methods import methods
from .diffusers.pipes import denoiser
from .diffusers.watch import attach
from .webui import model
from .webui.places import Kind, Place
from .webui.session import Session

WORDLESS = "MemGuard names no words and draws no maps in SD.Next"
CHUNK = 75  # tokens of a text encoder's input, without BOS and EOS
LATER = "the prompt changes during the run, and what comes after the first step is not scored"
KINDS: dict[str, Kind] = {"Hires": "hires", "Refiner": "refiner"}  # of a pass, by the host's name of its call

Told = Callable[[Any, Any, Mapping[str, Any]], None]  # processing, pipeline, other arguments of set_pipeline_args


class Watch:
    """Watches the passes of one session.

    Args:
        session: of one press of Generate.

    Attributes:
        owner: returns the host's StableDiffusionProcessing that the session belongs to, None where that is gone.

    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.owner: Callable[[], Any] = lambda: None
        self._listens = ExitStack()  # as long as the generation is watched
        self._call = ExitStack()  # from the arguments of a pipeline call to its end

    def own(self, p: Any) -> None:
        """Take whose session it is, and watch each pipeline call from now on."""
        self.owner = ref(p)
        self._listens.enter_context(arguments(self._expect))

    def finish(self) -> None:
        """Close the pass in progress."""
        self._call.close()
        self.session.end()

    def leave(self) -> None:
        """Nothing of ours stays in the host."""
        self._listens.close()
        self._call.close()

    def _expect(self, p: Any, pipe: Any, given: Mapping[str, Any]) -> None:
        """A pipeline is about to be called."""
        self._call.close()
        with self.session.careful():
            self._begin(p, pipe, given)
        with self.session.careful():
            self._call.enter_context(methods(pipe, __call__=self._run))

    def _begin(self, p: Any, pipe: Any, given: Mapping[str, Any]) -> None:
        session, network = self.session, denoiser(pipe)
        session.prepare(None)
        texts = _texts(given.get("prompts"))
        facts = {
            "model": "" if network is None else model.name_of(network, pipe),
            "prompt": " | ".join(dict.fromkeys(texts)),
            "negative_prompt": " | ".join(dict.fromkeys(_texts(given.get("negative_prompts")))),
            "sampler": _sampler(p, given),
        }
        changes = prompt_parser.get_learned_conditioning_prompt_schedules(list(texts), int(p.steps or 1))
        notes = (LATER,) if any(len(schedule) > 1 for schedule in changes) else ()
        now = session.begin(object(), self._place(p, given, texts), **facts, notes=notes)
        reads = session.guard.policy == "mitigate" or session.guard.attention
        facts |= {"host": session.host, "host_version": session.version}
        watched = attach(session.guard, pipe, facts=facts, texts=texts if reads else (), begin=lambda **_: now.run)
        self._call.enter_context(watched)
        if network is not None:
            self._call.enter_context(listening(network, lambda *_: self._scored()))

    def _place(self, p: Any, given: Mapping[str, Any], texts: Sequence[str]) -> Place:
        """Return which pass of the generation it is."""
        owner = self.owner()
        kind: Kind = KINDS.get(str(given.get("desc")), "") if owner is None or owner is p else "inner"
        whole = owner or p
        return Place(
            batch=int(whole.iteration or 0),
            batches=int(whole.n_iter or 1),
            kind=kind,
            prompt="\0".join(texts),
            painted=bool(kind) or len(getattr(p, "init_images", None) or ()) > 0,
        )

    def _scored(self) -> None:
        """End a check, once nothing more is wanted of the pass."""
        now = self.session.now
        if now is not None and not now.run.wants(len(now.run.evidence)):
            self.session.enough()

    def _run(self, call: Callable[..., Any], pipe: Any, *args: Any, **kwargs: Any) -> Any:
        """Make the pipeline call, and end the pass with it."""
        try:
            if self.session.stopped:  # by a hook of ours that broke before the call
                raise AssertionError(self.session.stopped)
            return call(pipe, *args, **kwargs)
        except MemorizationStop as ended:
            self.session.stop(str(ended))
            raise AssertionError(self.session.stopped) from None
        finally:
            self._call.close()
            with self.session.careful(over=True):
                self._end()

    def _end(self) -> None:
        now, when = self.session.now, self.session.explain
        if now is None:
            return
        run = now.run
        if run.to_mitigate and not run.evidence:  # its verdict is that of an earlier pass
            left_alone(run, run.reason or ENDED)
        if when == "always" or (when == "flagged" and run.report.flagged):
            run.learn(notes=(*run.report.notes, WORDLESS))
        self.session.end()


@contextmanager
def arguments(told: Told) -> Iterator[None]:
    """Tell of each pipeline call that the host is about to make, its arguments being made."""
    inner, here = processing_diffusers.set_pipeline_args, [told]

    def set_pipeline_args(p: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        made = inner(p, model, *args, **kwargs)
        for each in here:
            each(p, model, kwargs)
        return made

    processing_diffusers.set_pipeline_args = set_pipeline_args
    try:
        yield
    finally:
        here.clear()
        if processing_diffusers.set_pipeline_args is set_pipeline_args:  # else somebody stands on it
            processing_diffusers.set_pipeline_args = inner


def _texts(given: Any) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(map(str, given or ()))


def _sampler(p: Any, given: Mapping[str, Any]) -> str:
    second = KINDS.get(str(given.get("desc"))) and getattr(p, "hr_sampler_name", None)
    return str(second or p.sampler_name or "")


class Tokens:
    """How many of SD.Next's chunks a prompt fills, for ``webui.tokens.short``.

    Args:
        pipe: the loaded pipeline.

    """

    def __init__(self, pipe: Any) -> None:
        self._tokenizer = getattr(pipe, "tokenizer", None)

    def tokenize_line(self, text: str) -> tuple[list[range], int]:
        """Return the chunks and the number of tokens."""
        count = CHUNK + 1 if self._tokenizer is None else len(self._tokenizer(text).input_ids) - 2
        return [range(begin, min(begin + CHUNK, count)) for begin in range(0, max(count, 1), CHUNK)], count


network, text_engine = denoiser, Tokens
