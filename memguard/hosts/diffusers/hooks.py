"""Hooks around the calls of a denoiser, compiled or not; none is left behind, and none costs the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

# of a call: module, args, kwargs, output -> None, or what to give out instead
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
# before a call: module, args, kwargs -> None, or the args and kwargs to use instead
Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], "tuple[tuple[Any, ...], dict[str, Any]] | None"]


class Trouble:
    """What becomes of errors in the hooks of one run: the first one is told, and all hooks of the run are over.

    Args:
        careful: the guard around each hook, such as ``Run.careful``; the default lets errors pass, where the run is
            memguard's own.
        undo: takes back what the hooks did to the run.

    Attributes:
        error: the first one.

    """

    def __init__(
        self,
        careful: Callable[[], AbstractContextManager[Any]] = nullcontext,
        undo: Callable[[], None] = lambda: None,
    ) -> None:
        self.careful, self.undo = careful, undo
        self.over = False
        self.error: Exception | None = None

    def __call__(self, hook: Callable[..., Any], *args: Any) -> Any:
        """Return what a hook returns; None after an error."""
        if self.over:
            return None
        with self.careful():
            try:
                found = hook(*args)
            except Exception as error:
                self.error = self.error or error
                raise
            if not self.over:  # as another hook may have made it, in a call of our own
                return found
        self.over = True
        with self.careful():
            self.undo()
        return None


@contextmanager
def listening(
    module: nn.Module,
    hook: Hook,
    before: Before | None = None,
    plainly: Callable[[], bool] = lambda: False,
    first: bool = False,
    trouble: Trouble | None = None,
    instead: Hook = lambda *_: None,
) -> Iterator[None]:
    """Call ``before`` and ``hook`` around every call of a module; leaves no hook behind.

    Args:
        module: the denoiser.
        hook: called after each call.
        before: called before it.
        first: whether ``hook`` comes before those that stand there already: it sees what the model itself predicts.
        plainly: whether a module that was compiled in place is to run this call as it is written.
        trouble: of the run.
        instead: called in place of ``hook`` once there was trouble; may give out what the model says by itself.

    """
    trouble = trouble or Trouble()

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = trouble(hook, module, args, kwargs, output)
        if not trouble.over:
            return given
        with trouble.careful():
            return instead(module, args, kwargs, output)
        return None

    def ahead(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None if before is None else trouble(before, module, args, kwargs)

    compiled = module._compiled_call_impl
    if compiled is None:
        handles = [module.register_forward_hook(after, with_kwargs=True, prepend=first)]
        if before is not None:
            handles.append(module.register_forward_pre_hook(ahead, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        return

    # module.compile() traces forward hooks into its graph; beside the compiled call the graph stays as it is
    def call(*args: Any, **kwargs: Any) -> Any:
        changed = ahead(module, args, kwargs)
        args, kwargs = (args, kwargs) if changed is None else changed
        output = (module._call_impl if trouble(plainly) else compiled)(*args, **kwargs)
        given = after(module, args, kwargs, output)
        return output if given is None else given

    module._compiled_call_impl = call
    try:
        yield
    finally:
        module._compiled_call_impl = compiled


@contextmanager
def eagerly(module: Any) -> Iterator[None]:
    """Let a module that was compiled in place run as it is written: its graph would not follow the edits of a call."""
    compiled = module._compiled_call_impl
    module._compiled_call_impl = None
    try:
        yield
    finally:
        module._compiled_call_impl = compiled


def set_eager(stack: ExitStack, module: nn.Module) -> None:
    """Do the same for what torch.compile returned, until the stack is left."""
    if hasattr(module, "_orig_mod") and hasattr(torch.compiler, "set_stance"):
        stack.enter_context(torch.compiler.set_stance("force_eager"))
