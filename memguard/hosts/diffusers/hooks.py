"""Hooks around the calls of a denoiser, compiled or not; none is left behind.

Room: memguard.hosts, diffusers. May import: torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

# of a call: module, args, kwargs, output -> None, or what to give out instead
Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Any]
# before a call: module, args, kwargs -> None, or the args and kwargs to use instead
Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], "tuple[tuple[Any, ...], dict[str, Any]] | None"]


@contextmanager
def listening(
    module: nn.Module,
    hook: Hook,
    before: Before | None = None,
    plainly: Callable[[], bool] = lambda: False,
    first: bool = False,
) -> Iterator[None]:
    """Call ``before`` and ``hook`` around every call of a module; leaves no hook behind.

    Args:
        module: the denoiser.
        hook: called after each call.
        before: called before it.
        first: whether ``hook`` comes before those that stand there already: it sees what the model itself predicts.
        plainly: whether a module that was compiled in place is to run this call as it is written.

    """
    compiled = module._compiled_call_impl
    if compiled is None:
        handles = [module.register_forward_hook(hook, with_kwargs=True, prepend=first)]
        if before is not None:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        return

    # module.compile() traces forward hooks into its graph; beside the compiled call the graph stays as it is
    def call(*args: Any, **kwargs: Any) -> Any:
        changed = None if before is None else before(module, args, kwargs)
        args, kwargs = changed or (args, kwargs)
        output = (module._call_impl if plainly() else compiled)(*args, **kwargs)
        given = hook(module, args, kwargs, output)
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
