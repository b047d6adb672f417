"""``attach``: a guard watches every call of one pipeline.

``__call__`` and ``encode_prompt`` of the one pipeline object go through memguard (``methods``); the denoiser has a
forward hook during a call only. So nothing of diffusers is patched for other pipelines, and leaving the block leaves
nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ...guard import Guard, Run
from . import pipes
from .attention import attending
from .edits import PLAN
from .hooks import Trouble, listening
from .latents import keeping_latents
from .methods import encoding, methods
from .mitigating import Mitigating
from .projected import Reading
from .reader import Reader
from .received import Received, receiving
from .rows import SWAPPED, Prompts
from .steering import Steering
from .tokens import unread

UNSEEN = "the pipeline did not call its {}, so nothing could be seen"


@contextmanager
def attach(
    guard: Guard,
    pipe: Any,
    *,
    facts: Mapping[str, Any] | None = None,
    texts: Sequence[str] = (),
    begin: Callable[..., Run] | None = None,
) -> Iterator[Any]:
    """Watch a pipeline; every call of it inside the block is one run and leaves one ``guard.report``.

    Reads the predictions that the pipeline makes anyway; pictures are identical to those without a guard. Under policy
    "stop" a call may raise ``MemorizationStop``: for a run that looks memorized, and for one that has no score.

    Args:
        guard: settings, and where the report appears.
        pipe: a diffusers pipeline with a ``unet`` or a ``transformer``.
        facts: fields of Report that a program around the pipeline knows better than the pipeline's arguments tell.
        texts: what the calls' ``prompt_embeds`` were made of, one for each row, where the columns are those of the
            text; mitigations that tell words from padding need them.
        begin: begins the run of a call, in the place of ``guard.begin``.

    """
    watch = _Watch(guard, dict(facts or {}), tuple(texts), begin or guard.begin)
    own = {"__call__": watch.run, **encoding(pipe, watch.encoded, lambda: watch.trouble)}
    if guard.policy == "mitigate":
        own |= keeping_latents(pipe, lambda: watch.steering, lambda: watch.trouble)
    with methods(pipe, **own):
        yield pipe


class _Watch:
    """What lives as long as the block: one run at a time, and the fingerprints of the denoisers seen."""

    def __init__(self, guard: Guard, facts: dict[str, Any], texts: tuple[str, ...], begin: Callable[..., Run]) -> None:
        self.guard, self.facts, self.texts, self._begin = guard, facts, texts, begin
        self._models: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._prompts: Prompts | None = None
        self._now: tuple[Any, Run] | None = None
        self.steering: Steering | None = None
        self.trouble: Trouble | None = None  # of the run in progress

    def run(self, call: Callable[..., Any], pipe: Any, *args: Any, **kwargs: Any) -> Any:
        """Make one call of the pipeline, watched."""
        run = self._begin(host="diffusers")
        trouble = self.trouble = Trouble(run.careful)
        seen: list[Reader] = []
        try:
            with ExitStack() as stack:
                trouble(self._prepare, call, pipe, run, args, kwargs, stack, seen)
                if run.reason is not None:
                    run.insist()
                made = call(pipe, *args, **kwargs)
            if not run.evidence and not getattr(pipe, "interrupt", False):
                run.unavailable(seen[0].why_not() if seen else UNSEEN.format("denoiser"))
                run.insist()
            return made
        finally:
            if self.steering is not None:
                SWAPPED.set(None)
                PLAN.set(None)  # a call that failed leaves its plan behind
            self._prompts = self._now = self.steering = self.trouble = None
            run.finish()

    def encoded(self, *what: Any) -> None:
        """Take what the pipeline encodes."""
        if self._prompts is None or self._now is None:
            return
        self._prompts.learn(*what)
        (pipe, run), texts = self._now, self._prompts.texts
        columns = 0 if self._prompts.cond is None else self._prompts.cond.text.shape[1]
        for number, text in enumerate(texts, 1):
            cut = unread(pipe, text, columns)
            note = f"prompt {number}: {cut}" if len(texts) > 1 else cut
            if cut and note not in run.report.notes:
                run.learn(notes=(*run.report.notes, note))

    def _prepare(
        self,
        call: Callable[..., Any],
        pipe: Any,
        run: Run,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        stack: ExitStack,
        seen: list[Reader],
    ) -> None:
        """Put the hooks of a run in their places; they stay on the stack."""
        assert self.trouble is not None
        run.learn(**pipes.host_facts() | self.facts)
        module = pipes.denoiser(pipe)
        if module is None:
            run.unavailable(f"{type(pipe).__name__} has neither a unet nor a transformer")
            return
        given = pipes.arguments(call, (pipe, *args), kwargs)
        if module not in self._models:
            self._models[module] = self.facts.get("model") or pipes.name_of(module)
        told = {"model": self._models[module]} | pipes.run_facts(pipe, given)
        told["notes"] = (*run.report.notes, *told["notes"])
        run.learn(**told | self.facts)
        prompts = Prompts("" if self.guard.reference == "empty" else None, self.texts)
        received, scale = None, pipes.guidance(given)
        by_prompt, s = pipes.guided(pipe, given)
        if by_prompt and self.guard.reference == "negative" and not self.guard.late:  # the others need the text
            received = Received(pipe, module, given, s, self.guard.attention)
        reader = Reader(pipe, run, prompts, self.guard.reference, scale, late=self.guard.late, received=received)
        if received is not None and self.guard.policy != "mitigate":
            stack.enter_context(receiving(getattr(pipe, "scheduler", None), reader.take, self.trouble))
        reader.read = stack.enter_context(attending(self.guard.attention, module))
        if isinstance(reader.read, Reading) and not self.guard.late:
            reader.read.wants = lambda: run.wants(reader.step)
        if received is not None and reader.read is not None:
            received.take_attention(reader.read)
        if self.guard.policy == "mitigate":
            hook = Mitigating(run, reader, module, stack, self.trouble, scale)
            self.trouble.undo = hook.undo
            stack.enter_context(
                listening(module, hook, hook.before, hook.plainly, True, self.trouble, hook.steering.plain)
            )
            put = receiving(getattr(pipe, "scheduler", None), hook.put, self.trouble)
            if received is None:
                hook.steering.listen = partial(stack.enter_context, put)
            else:
                stack.enter_context(put)
            self.steering = hook.steering
        else:
            stack.enter_context(listening(module, reader, first=True, trouble=self.trouble))
        self._prompts, self._now = prompts, (pipe, run)
        seen.append(reader)
