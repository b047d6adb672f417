"""``attach``: a guard watches every call of one pipeline.

For the time of the ``with`` block the pipeline object belongs to a subclass of its own class, of the same name, whose
``__call__`` and ``encode_prompt`` go through memguard; the denoiser has a forward hook during a call only. So nothing
of diffusers is patched for other pipelines, and leaving the block leaves nothing behind.

Room: memguard.hosts, diffusers. May import: memguard.guard, memguard.records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ...guard import Guard, Run
from . import pipes
from .attention import attending
from .hooks import listening
from .mitigating import Mitigating
from .reader import Reader
from .rows import OWN, SWAPPED, Prompts
from .steering import Steering, keeping_latents


@contextmanager
def methods(pipe: Any, **own: Callable[..., Any]) -> Iterator[None]:
    """Replace methods of one object, each ``own`` one with the signature of the method that it stands for."""
    original = type(pipe)
    body = {name: wraps(getattr(original, name))(method) for name, method in own.items()}
    cls = type(original.__name__, (original,), body | {"__module__": original.__module__, "__doc__": original.__doc__})
    object.__setattr__(pipe, "__class__", cls)
    try:
        yield
    finally:
        object.__setattr__(pipe, "__class__", original)


def encoding(pipe: Any, learn: Callable[..., None]) -> dict[str, Callable[..., Any]]:
    """Return the ``encode_prompt`` for ``methods`` that reports what is encoded; none if the pipeline has none.

    Args:
        pipe: the pipeline.
        learn: called with (bound encode_prompt, args, kwargs, result).

    """
    original = getattr(type(pipe), "encode_prompt", None)
    if original is None:
        return {}

    def encode_prompt(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if not OWN.get():
            learn(original.__get__(self), args, kwargs, result)
        return result

    return {"encode_prompt": encode_prompt}


@contextmanager
def attach(guard: Guard, pipe: Any) -> Iterator[Any]:
    """Watch a pipeline; every call of it inside the block is one run and leaves one ``guard.report``.

    Reads the predictions that the pipeline makes anyway; pictures are identical to those without a guard. Under policy
    "stop" a call may raise ``MemorizationStop``.

    Args:
        guard: settings, and where the report appears.
        pipe: a diffusers pipeline with a ``unet`` or a ``transformer``.

    """
    watch = _Watch(guard, type(pipe).__call__)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return watch.run(self, args, kwargs)

    own = {"__call__": call, **encoding(pipe, watch.encoded)}
    if guard.policy == "mitigate":
        own |= keeping_latents(pipe, lambda: watch.steering)
    with methods(pipe, **own):
        yield pipe


class _Watch:
    """What lives as long as the block: one run at a time, and the fingerprints of the denoisers seen."""

    def __init__(self, guard: Guard, call: Callable[..., Any]) -> None:
        self.guard, self.call = guard, call
        self._models: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
        self._now: tuple[Run, Prompts] | None = None
        self.steering: Steering | None = None

    def run(self, pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self.guard.begin(**pipes.host_facts())
        try:
            reader, module = self._prepare(pipe, run, args, kwargs)
            if reader is None or module is None:
                return self.call(pipe, *args, **kwargs)
            self._now = (run, reader.prompts)
            with ExitStack() as stack:
                reader.read = stack.enter_context(attending(self.guard.attention, module))
                if self.guard.policy == "mitigate":
                    hook = Mitigating(run, reader, module, stack)
                    self.steering = hook.steering
                    stack.enter_context(listening(module, hook, hook.before, hook.plainly, first=True))
                else:
                    stack.enter_context(listening(module, reader, first=True))
                return self.call(pipe, *args, **kwargs)
        finally:
            if self.steering is not None:
                SWAPPED.set(None)
            self._now = self.steering = None
            run.finish()

    def encoded(self, *what: Any) -> None:
        if self._now is None:
            return
        run, prompts = self._now
        try:
            prompts.learn(*what)
        except Exception as error:
            run.failed(error)

    def _prepare(
        self, pipe: Any, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Reader | None, nn.Module | None]:
        try:
            module = pipes.denoiser(pipe)
            if module is None:
                run.unavailable(f"{type(pipe).__name__} has neither a unet nor a transformer")
                return None, None
            given = pipes.arguments(self.call, (pipe, *args), kwargs)
            if module not in self._models:
                self._models[module] = pipes.name_of(module)
            run.learn(model=self._models[module], **pipes.run_facts(pipe, given))
            prompts = Prompts("" if self.guard.reference == "empty" else None)
            cfg = pipes.guidance(given)
            return Reader(pipe, run, prompts, self.guard.reference, cfg, late=self.guard.late), module
        except Exception as error:
            run.failed(error)
            return None, None
