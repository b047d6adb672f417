"""Methods of one pipeline object, replaced for a while, by several at a time and in any order of leaving.

For that time the object belongs to a subclass of its own class, of the same name, one for each layer of methods. When
a layer leaves, the others are put together again on the object's own class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

from .hooks import Trouble
from .ids import noting
from .rows import OWN

# of a method: what it stands for (unbound), the object, its arguments
Method = Callable[..., Any]

_LAYERS: WeakKeyDictionary[Any, tuple[type, list[dict[str, Method]]]] = WeakKeyDictionary()


@contextmanager
def methods(pipe: Any, **own: Method) -> Iterator[None]:
    """Replace methods of one object, each ``own`` one with the signature of the method that it stands for.

    Args:
        pipe: the object.
        own: called with what stood there before, the object, and the arguments.

    """
    original, layers = _LAYERS.setdefault(pipe, (type(pipe), []))
    layer = dict(own)
    layers.append(layer)
    _build(pipe, original, layers)
    try:
        yield
    finally:
        layers[:] = [each for each in layers if each is not layer]
        _build(pipe, original, layers)
        if not layers:
            _LAYERS.pop(pipe, None)


def _build(pipe: Any, original: type, layers: list[dict[str, Method]]) -> None:
    cls = original
    for layer in layers:
        body = {name: _method(method, getattr(cls, name)) for name, method in layer.items()}
        cls = type(original.__name__, (cls,), body | {"__module__": original.__module__, "__doc__": original.__doc__})
    object.__setattr__(pipe, "__class__", cls)


def _method(method: Method, inner: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(inner)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(inner, self, *args, **kwargs)

    return call


def encoding(
    pipe: Any, learn: Callable[..., None], trouble: Callable[[], Trouble | None] = Trouble
) -> dict[str, Method]:
    """Return the ``encode_prompt`` for ``methods`` that reports what is encoded; none if the pipeline has none.

    Args:
        pipe: the pipeline.
        learn: called with (bound encode_prompt, args, kwargs, result).
        trouble: of the run in progress; None where there is none.

    """
    if getattr(type(pipe), "encode_prompt", None) is None:
        return {}

    def encode_prompt(inner: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        now = None if OWN.get() else trouble()
        with ExitStack() as stack:
            if now is not None:
                now(lambda: stack.enter_context(noting(self)))
            result = inner(self, *args, **kwargs)
            if now is not None:
                now(learn, inner.__get__(self), args, kwargs, result)
        return result

    return {"encode_prompt": encode_prompt}
