"""Which rows of a denoiser call carry the prompt: they are compared with what the pipeline encoded, never counted."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, equal

from ...aside import aside
from ...attributions import moment
from ...troubles import Told, in_words
from .ids import READ

log = logging.getLogger("memguard")

# True while memguard itself encodes or predicts, so that several guards on one pipeline do not watch each other.
OWN: ContextVar[bool] = ContextVar("memguard_own", default=False)


# The text that a mitigation of ours put into a model call, and what its rows are: they cannot be told by comparing.
SWAPPED: ContextVar[tuple[Tensor, list[str]] | None] = ContextVar("memguard_swapped", default=None)


@contextmanager
def own(*used: Any) -> Iterator[None]:
    """Mark what happens inside as memguard's own work, which leaves random generators as they are.

    Args:
        used: what it computes with, as for ``aside``.

    """
    token = OWN.set(True)
    try:
        with aside(*used):
            yield
    finally:
        OWN.reset(token)


@contextmanager
def until_enough(module: Any) -> Iterator[None]:
    """A run of ours that ``Enough`` may end early, on a denoiser that is as before afterwards.

    Pipelines that exchange attention processors for a run (perturbed attention) put them back at its very end only.
    """
    kept = dict(getattr(module, "attn_processors", {}))
    try:
        with suppress(Enough):
            yield
    finally:
        if any(module.attn_processors.get(name) is not processor for name, processor in kept.items()):
            module.set_attn_processor(dict(kept))


class Enough(Exception):
    """Ends a pipeline call of ours: all steps that were asked for are scored."""


class Unscored(Told):
    """The reason why a model call has no score, in words for the user."""


class Unguided(Unscored):
    """The reason where guidance is off."""


@contextmanager
def told() -> Iterator[None]:
    """Say in words what goes wrong in the block; the log has the rest.

    Raises:
        Unscored: with the words.

    """
    try:
        yield
    except (Told, FloatingPointError, Enough):
        raise
    except Exception as error:
        log.warning("%s: %s", type(error).__name__, error, exc_info=error)
        raise Unscored(in_words(error)) from error


UNCALLED = "the pipeline did not call its unet or transformer, so nothing could be seen"
UNKNOWN = "this pipeline encodes prompts in a way that MemGuard does not know"
SAME = "the prompt and the negative prompt are the same for the model, so there is nothing to compare"
SAME_EMPTY = "the prompt is encoded as the prompt that it is compared with, so there is nothing to compare"
ONCE = "the pipeline predicts each step once, so nothing is predicted without the prompt"
ALMOST = 0.02  # of a text's norm: half precision, and another way to the same numbers
ALIKE = "the model predicts the same with and without the prompt, so there is nothing to score"


@dataclass(frozen=True)
class Encoded(moment.Encoded):
    """A prompt as the denoiser gets it, and how two of them compare."""

    def head(self, rows: int) -> Encoded:
        """Return the first rows."""
        return Encoded(self.text[:rows], None if self.pooled is None else self.pooled[:rows])

    def same(self, other: Encoded) -> bool:
        """Whether two prompts are the same for the denoiser."""
        if (self.pooled is None) != (other.pooled is None):
            return False
        pooled = self.pooled is None or other.pooled is None or _same(self.pooled, other.pooled)
        return pooled and _same(self.text, other.text)


class Prompts:
    """What a pipeline encoded during one run.

    Args:
        wish: the prompt that predictions may have to be compared with and that the pipeline may not encode itself; ""
            is the pipeline's own way to have no prompt (SDXL: zeros); None for no wish.
        known: the prompt's texts, where the pipeline is given what they were encoded to.

    Attributes:
        cond: the prompt.
        uncond: what the pipeline encoded to guide away from; None without classifier-free guidance.
        texts: the prompt's texts, where they are known.
        read: the ids that its text encoders read, row by row.

    """

    def __init__(self, wish: str | None = None, known: tuple[str, ...] = ()) -> None:
        self.wish, self._known = wish, known
        self.cond: Encoded | None = None
        self.uncond: Encoded | None = None
        self.texts: tuple[str, ...] = ()
        self.read: list[list[int]] = []
        self._encode: Callable[..., tuple[Encoded, Encoded | None]] | None = None
        self._paired = False
        self._wished: Encoded | None = None
        self._confused = False
        self._unknown = False  # whether encode_prompt cannot be asked for other texts

    def learn(self, encode: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Take one call ``encode(*args, **kwargs) -> result`` of the pipeline's ``encode_prompt``, bound."""
        self.read += READ.get() or []
        signature = inspect.signature(encode)
        self._unknown = "prompt" not in signature.parameters
        paired = "negative_prompt" in signature.parameters
        try:
            first, second = _split(result)
        except Unscored:  # the scheduler may still tell the roles
            self._unknown = True
            return
        if self.cond is None:
            bound = signature.bind(*args, **kwargs)
            guided = bound.arguments.get("do_classifier_free_guidance", True)  # given vectors come back without it, too
            self.cond, self.uncond = first, second if paired and guided else None
            self._paired = paired
            given = bound.arguments.get("prompt")
            self.texts = (given,) if isinstance(given, str) else tuple(given or ())
            self._encode = partial(self._again, encode, signature, bound)
            if not self.texts and self._made_of(self._known):
                self.texts = self._known
        elif self.uncond is None and not paired:
            self.uncond = first  # Flux and kin encode the negative prompt in a second call
        else:
            self._confused = True

    def _made_of(self, texts: tuple[str, ...]) -> bool:
        """Whether texts are encoded to the prompt, so that its columns are theirs."""
        if not texts or self._unknown or self.cond is None:
            return False
        made, given = self.encode(texts).text.float(), self.cond.text.float()
        return made.shape == given.shape and float((made - given).norm()) < ALMOST * float(given.norm())

    def of_rows(self, rows: int) -> tuple[str, ...]:
        """Return the text of each of a number of rows, or the one text of all; none where they are not known."""
        if len(self.texts) < 2 or rows % len(self.texts):
            return self.texts[:1] if len(self.texts) == 1 else ()
        return tuple(text for text in self.texts for _ in range(rows // len(self.texts)))

    @property
    def wished(self) -> Encoded | None:
        """The wish, encoded when it is first asked for, as many rows as ``cond``; None for no wish."""
        if self._wished is None and self.wish is not None and self._encode is not None and self.cond is not None:
            if self._unknown:
                raise Unscored(UNKNOWN)
            rows = len(self.cond.text)
            if self._paired:
                # "" as negative prompt is the pipeline's own way to have none (SDXL: zeros)
                self._wished = self._encode([""], [self.wish] if self.wish else None, rows)[1]
            else:
                self._wished = self._encode([self.wish], None, rows)[0]
        return self._wished

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode other prompts as the pipeline encoded its own, one row each.

        Raises:
            Unscored: if the pipeline has no encode_prompt.

        """
        if self._encode is None:
            raise Unscored("this pipeline has no encode_prompt, so other prompts cannot be encoded")
        if self._unknown:
            raise Unscored(UNKNOWN)
        return self._encode(list(texts), len(texts) * [""] if self._paired else None, 1)[0]

    def _again(
        self,
        encode: Callable[..., Any],
        signature: inspect.Signature,
        bound: inspect.BoundArguments,
        prompts: list[str],
        negative: list[str] | None,
        images: int,
    ) -> tuple[Encoded, Encoded | None]:
        """Encode with the settings (device, clip_skip, LoRA scale, ...) of the pipeline's own call."""
        texts = ("prompt", "negative_", "pooled_")
        settings = {
            name: None if parameter.default is parameter.empty else parameter.default
            for name, parameter in signature.parameters.items()
            if name.startswith(texts)
        }
        settings = {k: v for k, v in bound.arguments.items() if not k.startswith(texts)} | settings
        settings |= {"prompt": prompts}
        switches = {"num_images_per_prompt": images, "do_classifier_free_guidance": True, "batch_size": len(prompts)}
        settings |= {k: v for k, v in switches.items() if k in signature.parameters}
        if self._paired and negative is not None:
            settings["negative_prompt"] = negative
        with own():
            return _split(encode(**settings))

    def roles(self, text: Tensor) -> list[str]:
        """Return "prompt", "negative" or "unknown" for each block of rows, in order.

        Args:
            text: encoder_hidden_states of a call, [blocks * rows, tokens, d].

        Raises:
            Unscored: if the pipeline's prompts are not known.

        """
        swapped = SWAPPED.get()
        if swapped is not None and swapped[0] is text:
            return swapped[1]
        if self._unknown:
            raise Unscored(UNKNOWN)
        if self.cond is None:
            raise Unscored("this pipeline has no encode_prompt, so the rows that carry the prompt cannot be told")
        if self._confused:
            raise Unscored(
                "the pipeline encodes its prompt more than once, so the rows that carry the prompt cannot be told"
            )
        blocks = text.split(len(self.cond.text))
        is_cond = [_same(block, self.cond.text) for block in blocks]
        is_uncond = [self.uncond is not None and _same(block, self.uncond.text) for block in blocks]
        if is_cond == is_uncond == [True, True]:
            return ["negative", "prompt"]  # the prompt is the negative prompt; diffusers' order
        return ["prompt" if c else "negative" if u else "unknown" for c, u in zip(is_cond, is_uncond, strict=True)]


def _split(result: Any) -> tuple[Encoded, Encoded | None]:
    """Return prompt and negative prompt of what an ``encode_prompt`` returned, with their pooled vectors.

    Pipelines return texts, pooled vectors, masks and places in several orders; each is told by its shape, and the
    prompt's come before the negative prompt's in all of them.

    Raises:
        Unscored: if no encoded text is among them.

    """
    tensors = [part for part in (result if isinstance(result, tuple | list) else [result]) if isinstance(part, Tensor)]
    texts = [part for part in tensors if part.ndim == 3]
    if not texts:
        raise Unscored(UNKNOWN)
    rows, tokens, _ = texts[0].shape
    flat = [part for part in tensors if part.ndim == 2 and len(part) == rows and part.is_floating_point()]
    pooled = [part for part in flat if part.shape[1] != tokens]  # masks have a column for each token
    first, second = (*pooled, None, None)[:2]
    return Encoded(texts[0], first), Encoded(texts[1], second) if len(texts) > 1 else None


def _same(a: Tensor, b: Tensor) -> bool:
    """Compare by value; NaN equals NaN, so that a broken prompt is still recognised."""
    return a.shape == b.shape and equal(a.nan_to_num(), b.to(a).nan_to_num())
