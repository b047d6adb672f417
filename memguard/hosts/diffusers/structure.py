"""Cross-attention found by structure: picture positions that attend to keys and values of the prompt alone.

While the denoiser computes, it is seen where the queries, keys and values of each attention come from (``lineage``).
It is cross-attention over the prompt where keys and values come from the text input and from nothing else that is
attended to, have its columns, and the queries come from the picture. So self-attention, joint attention and the keys
of pictures as prompts are none, whatever their layers are called. One call tells; afterwards only the layers that were
found are tapped.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .attended import ATTEND, Attended
from .calls import by_name
from .lineage import JOINED, OTHER, PICTURE, TEXT, Lineage

See = Callable[[str, Attended], "Tensor | None"]  # what is given out instead; None leaves it
Guarded = Callable[..., Any]  # calls a function with arguments; None after an error
NAMED = re.compile(r"(attn2|cross_attn|cross_attention)$")
PROJECTIONS = ("to_q", "to_k", "to_query", "to_qkv", "to_kv", "q_proj", "k_proj")


class Structure:
    """What is found in one denoiser during one run.

    Args:
        module: the denoiser, not compiled.
        see: asked at each attention over the prompt.
        wants: whether calls are looked at now.
        guarded: calls what may break.

    Attributes:
        sites: layers that attend to the prompt, in the order of execution, and which of their computations does.
        text: encoded prompts of the last call, [B, tokens, d].
        settled: whether a whole call was followed.

    """

    def __init__(self, module: nn.Module, see: See, wants: Callable[[], bool], guarded: Guarded) -> None:
        self.module, self.see, self.wants, self.guarded = module, see, wants, guarded
        self.sites: dict[str, int] = {}
        self.text: Tensor | None = None
        self.settled = False
        self.began: Callable[[], object] = lambda: None
        self._lineage: Lineage | None = None
        self._computed: set[str] = set()  # layers that compute by torch's own function
        self._joint = False
        self._beside: set[str] = set()  # layers whose keys are more than the prompt's columns

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand in the denoiser and its layers for the time of the block."""
        with ExitStack() as stack:
            for name, layer in layers(self.module).items():
                stack.enter_context(standing(layer, functools.partial(self._layer, name)))
            stack.enter_context(standing(self.module, self._call))
            yield

    def why(self) -> str:
        """Return why nothing was found in a call; "" where something was."""
        name = type(self.module).__name__
        if self.sites:
            return ""
        if self._joint:
            return f"{name} has no cross-attention layers: prompt and picture share their attention"
        if self._beside:
            return f"the attention of {min(self._beside)} cannot be read: its keys are not the prompt's columns alone"
        if not self._computed:
            return f"the attention of {name} cannot be read: it is computed by another function than torch's own"
        return f"MemGuard does not know the attention of {name}, so it cannot read or change it"

    def _call(self, inner: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.guarded(self.wants):
            return inner(*args, **kwargs)
        self.guarded(self._begin, args, kwargs)
        try:
            with self._lineage or nullcontext():
                made = inner(*args, **kwargs)
            self.settled = True
            return made
        finally:
            self._lineage = None

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = by_name(self.module, args, kwargs)
        text = arguments.get("encoder_hidden_states")
        self.text = text if isinstance(text, Tensor) else None
        self.began()
        if not self.settled and self.text is not None:
            self.sites = {}
            self._lineage = Lineage(arguments)

    def _layer(self, name: str, inner: Any, *args: Any, **kwargs: Any) -> Any:
        if (self._lineage is None and name not in self.sites) or not self.guarded(self.wants):
            return inner(*args, **kwargs)
        with _Tap(functools.partial(self._attention, name)):
            return inner(*args, **kwargs)

    def _attention(self, name: str, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        made = self.guarded(self._seen, name, number, args, kwargs)
        return ATTEND(*args, **kwargs) if made is None else made

    def _seen(self, name: str, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        found = Attended.of(args, kwargs)
        if self._lineage is not None:
            self._learn(name, number, found, self._lineage)
        return self.see(name, found) if self.sites.get(name) == number else None

    def _learn(self, name: str, number: int, found: Attended, lineage: Lineage) -> None:
        self._computed.add(name)
        query, key, value = (lineage.of(each) for each in (found.query, found.key, found.value))
        if key & JOINED:
            self._joint = True
        elif key & TEXT and not key & PICTURE and query & PICTURE:
            assert self.text is not None
            whole = found.plain and found.key.shape[2] == self.text.shape[-2] and len(found.key) % len(self.text) == 0
            if (key | value) & OTHER or value & PICTURE or not value & TEXT or not whole or name in self.sites:
                self._beside.add(name)
            else:
                self.sites[name] = number


class _Tap(TorchFunctionMode):
    """Asks at each computation of attention inside a layer; everything else is let through.

    Args:
        ask: gets its number within the layer and its arguments, and gives out what the layer gets.

    """

    def __init__(self, ask: Callable[[int, tuple[Any, ...], dict[str, Any]], Tensor]) -> None:
        super().__init__()
        self.ask, self.number = ask, -1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not ATTEND:
            return func(*args, **(kwargs or {}))
        self.number += 1
        return self.ask(self.number, args, kwargs or {})


@contextmanager
def standing(module: nn.Module, around: Callable[..., Any]) -> Iterator[None]:
    """Let ``around(forward, *args, **kwargs)`` make every call of a module for the time of the block.

    What others have put in the place of the forward since then stays there.
    """
    inner, before, over = module.forward, vars(module).get("forward"), False

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs) if over else around(inner, *args, **kwargs)

    module.forward = forward
    try:
        yield
    finally:
        over = True
        if vars(module).get("forward") is forward:
            if before is None:
                del module.forward
            else:
                module.forward = before


def layers(module: nn.Module) -> dict[str, Any]:
    """Return the layers that may compute attention, the outermost of those that lie in one another, by name."""
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        attends = hasattr(part, "processor") or any(hasattr(part, each) for each in PROJECTIONS)
        if name and attends and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = part
    return found


def crossing(module: nn.Module) -> dict[str, Any]:
    """Return the layers that look like cross-attention before any call has told, by what they say or are called."""
    found = {}
    for name, layer in layers(module).items():
        said = getattr(layer, "is_cross_attention", None)
        if said or (said is None and NAMED.search(name)):
            found[name] = layer
    return found


def compiled(module: nn.Module) -> bool:
    """Whether a module or a part of it was compiled: a graph does not show what it computes."""
    return any(part._compiled_call_impl is not None or hasattr(part, "_orig_mod") for part in module.modules())
