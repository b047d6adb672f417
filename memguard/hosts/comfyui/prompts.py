"""What mitigations must know of a run's prompt: what stands in each column, its text, and how other texts encode.

The text encoder may push the network out of the GPU's memory; a run in progress gets it back before its next call.

Part of the ComfyUI host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import comfy.model_management
import torch
from torch import Tensor
from torch.nn import functional

from ...attributions.moment import Encoded
from ...mitigations.edit import CODES, OTHER, PADDING
from . import graph, roles, screen, tokens
from .calls import Cond, leading, text_of, trailing
from .naming import Namer, Segment

UNCONNECTED = (
    "clip is not connected, so the prompt's tokens and text are not known: connect the CLIP that encoded the prompt, "
    "and other padding, attention masks and other wordings can act"
)


def behind() -> Callable[[], list[str]]:
    """Return what finds the texts of the prompt behind the node that is being executed now."""
    (prompt_id, node_id), index = screen.place(), screen.index()
    return lambda: graph.prompt_texts(screen.running_prompt(prompt_id), node_id, roles.PROMPT, index)


class Prompts:
    """The texts of one run.

    Args:
        clip: CLIP that encoded the prompt; None where none is connected.
        texts: finds the texts of the prompt in the workflow.
        guider: of the run; None before any sampling.

    """

    def __init__(self, clip: Any, texts: Callable[[], Sequence[str]], guider: Any = None) -> None:
        self.clip, self.guider, self._texts = clip, guider, texts
        self._segments: dict[Any, tuple[Segment, ...]] = {}
        self._tables: dict[Any, Tensor | None] = {}
        self._namer: Namer | None = None
        self._mode = torch.is_inference_mode_enabled()

    def table(self, cond: Cond) -> Tensor | None:
        """Return what stands in the columns of a processed conditioning, int8 [1, tokens]; None where not known."""
        key = cond.get("uuid")
        if key not in self._tables:
            self._tables[key] = self._made(cond)
        return self._tables[key]

    def text(self, cond: Cond) -> str | None:
        """Return the text that a conditioning was encoded from; None where it is not one known text."""
        found = self._found(cond)
        return found[0].text if len(found) == 1 else None

    def encode(self, texts: Sequence[str], padding: int | None = None) -> Encoded:
        """Return texts as the workflow's CLIP encodes them, one row each."""
        with _padded(self.clip.tokenizer, padding), self._lent():
            made = [tokens.encode(self.clip, text)[0] for text in texts]
        pooled = [extra.get("pooled_output") for _, extra in made]
        whole = None if any(each is None for each in pooled) else torch.cat(pooled)
        return Encoded(torch.cat([vectors for vectors, _ in made]), whole)

    def word(self, number: int) -> str:
        """Return the text of a token of CLIP's vocabulary."""
        tokenizer = _clip_l(self.clip.tokenizer)
        return tokens.plain(tokenizer, number, tokenizer.inv_vocab.get(number, ""))

    def _found(self, cond: Cond) -> tuple[Segment, ...]:
        key = cond.get("uuid")
        if self.clip is None:
            return ()
        if key not in self._segments:
            if self._namer is None:
                self._namer = Namer(self.clip, self._texts())
            # as it was before any mitigation: what the sampler made of it may have been exchanged
            vectors = cond.get("cross_attn")
            vectors = text_of(cond) if vectors is None else vectors
            with self._lent():
                self._segments[key] = self._namer.segments(vectors[:1].float().cpu())
        return self._segments[key]

    def _made(self, cond: Cond) -> Tensor | None:
        found = self._found(cond)
        if not found or any(segment.text is None for segment in found):
            return None
        table = torch.full((1, sum(segment.count for segment in found)), OTHER, dtype=torch.int8)
        for segment in found:
            for group, columns in segment.groups(self.clip).items():
                table[0, columns] = CODES[group]
        table = functional.pad(table, (leading(cond), 0), value=PADDING)
        return functional.pad(table, (0, trailing(cond)), value=OTHER)

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """Let the text encoder have the GPU's memory for the time of the block."""
        running = hasattr(self.guider, "inner_model")
        models = [self.guider.model_patcher, *self.guider.loaded_models] if running else []
        before = [model.loaded_size() for model in models]
        with ExitStack() as stack:
            if self._mode:  # as everything that nodes load and encode
                stack.enter_context(torch.inference_mode())
            try:
                yield
            finally:
                if [model.loaded_size() for model in models] != before:
                    comfy.model_management.load_models_gpu(models)


def _clip_l(tokenizers: Any) -> Any:
    name = getattr(tokenizers, "clip", "clip_l")
    return getattr(tokenizers, "clip_l", None) or getattr(tokenizers, name, tokenizers)


@contextmanager
def _padded(tokenizers: Any, padding: int | None) -> Iterator[None]:
    """Let CLIP-L's tokenizer fill prompts up with another token for the time of the block."""
    if padding is None:
        yield
        return
    tokenizer = _clip_l(tokenizers)
    before = tokenizer.pad_token
    tokenizer.pad_token = padding
    try:
        yield
    finally:
        tokenizer.pad_token = before
