"""What a mitigation is: it turns the start of a run into a treatment of that run. What hosts give and take.

A host builds one ``Start`` at the first model call, hands it to the mitigation, and carries out the ``Treatment`` that
comes back: edits inside cross-attention, other rows of text, other starting noise, another way to use the noise gap.
Treatments add up: each mitigation gets that of the one before.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from ..attributions.moment import Encoded
from ..layout import Layout
from ..setting import of, setting
from ..troubles import Told
from .edit import Edit

Parity = Literal["official"] | None


class Unsuitable(Told):
    """Why a mitigation cannot act on a run, in words for the user. The picture goes on without it."""


@dataclass(frozen=True)
class View:
    """One way to predict the noise of the first model call.

    Attributes:
        prompt: B rows.
        noise: starting noise of unit variance, [B, C, h, w]; None is the run's own.
        edits: of cross-attention.

    """

    prompt: Encoded
    noise: Tensor | None = None
    edits: tuple[Edit, ...] = ()


class Encode(Protocol):
    """Encodes other texts as the host encoded its own, one row each."""

    def __call__(self, texts: Sequence[str], padding: int | None = None) -> Encoded:
        """Encode; ``padding`` is the token id that CLIP-L's part is filled up with, None the encoder's own."""


@dataclass(frozen=True)
class Start:
    """The first model call of a run, which can be made again.

    Attributes:
        prompt: what the model is conditioned on, B rows for B images.
        reference: what the prompt is compared with, B rows: what the run guides away from, or the empty prompt where
            its score is of that; None where there is neither.
        negative: what the run guides away from, B rows; None without guidance.
        noise: starting noise of unit variance, float32 [B, C, h, w]; None where the run does not start from pure noise.
        size: (C, h, w) of the latents, (C, T, h, w) where they have frames.
        predict: from a View to the prediction [B, C, h, w], float32, in units of epsilon (velocity for flow models).
            Follows torch's gradient mode; rows that it costs are counted by the host.
        groups: what stands in each token column, int8 [B, tokens]; None where the tokens are not known.
        texts: the prompts, one per row or one for all; empty where the texts are not known.
        encode: encodes other texts; None where the host cannot.
        widths: layer -> number of value neurons of its cross-attention; empty without such layers.
        model: fingerprint of the checkpoint.
        eos_padded: number of features of the text, from the first on, that come from an encoder that fills prompts up
            with EOS: all of SD1's, CLIP-L's 768 of SDXL's, 0 elsewhere.
        family: "sd15", "sd2", "sdxl", "sd3", "flux" or "other".
        sigma: noise level of the call.
        threshold: RMS of the noise gap below which the run counts as ordinary; None where there is no profile.
        typical: RMS of the noise gap of the median ordinary prompt; None where there is no profile.
        gradients: context in which predictions can be differentiated.
        word: the text of a token id of CLIP's vocabulary, for the baseline of random tokens.
        cancelled: raises what ends the run, if the user pressed stop; called between evaluations.
        first: what an earlier pass of the same picture went on with; None for a first pass.

    """

    prompt: Encoded
    reference: Encoded | None
    noise: Tensor | None
    size: tuple[int, ...]
    predict: Callable[[View], Tensor]
    groups: Tensor | None = None
    texts: tuple[str, ...] = ()
    encode: Encode | None = None
    widths: dict[str, int] = field(default_factory=dict)
    model: str = ""
    eos_padded: int = 0
    family: str = "other"
    sigma: float = 0.0
    threshold: float | None = None
    typical: float | None = None
    gradients: Callable[[], AbstractContextManager[Any]] = torch.enable_grad
    word: Callable[[int], str] | None = None
    cancelled: Callable[[], None] = lambda: None
    first: Treatment | None = None
    negative: Encoded | None = None

    @property
    def elements(self) -> int:
        """The number of latent elements of an image, C * h * w, of all frames."""
        return math.prod(self.size)

    def needs_reference(self) -> Encoded:
        """Return what the run guides away from.

        Raises:
            Unsuitable: if guidance is off.

        """
        if self.reference is None:
            raise Unsuitable("guidance is off, so there is no prediction without the prompt to compare with")
        return self.reference

    def gap(self, treatment: Treatment, noise: Tensor | None = None, prompt: Encoded | None = None) -> Tensor:
        """Return the noise gap [B, C, h, w] under a treatment, with other noise or another prompt where given."""
        self.cancelled()
        noise = treatment.noise if noise is None else noise
        prompt = prompt or treatment.prompt or self.prompt
        reference = treatment.reference or self.needs_reference()
        cond = self.predict(View(prompt, noise, treatment.edits))
        return cond.float() - self.predict(View(reference, noise)).float()

    def starting_noise(self, treatment: Treatment) -> Tensor:
        """Return the noise that a treated run starts from.

        Raises:
            Unsuitable: if the run does not start from pure noise.

        """
        found = self.noise if treatment.noise is None else treatment.noise
        if found is None:
            raise Unsuitable("the run starts from a picture, not from pure noise")
        return found


@dataclass(frozen=True)
class Step:
    """One model call of a run that is guided in another way.

    Attributes:
        index: of the call, 0 for the first.
        count: number of steps; 0 where the host cannot tell.
        sigma: noise level as in StepEvidence.
        timestep: on the 1000-step schedule; None where the model has none.
        scale: guidance scale of the sampler.
        predict: predicts the same latents for another View, [B, C, h, w]; its noise is ignored.
        prompt: what the prompt's rows are conditioned on in this run.
        cond: the prompt's prediction.
        uncond: the prediction of the same rows without it.
        layout: how both lie, and the noise gap.

    """

    index: int
    count: int
    sigma: float
    timestep: float | None
    scale: float
    predict: Callable[[View], Tensor]
    prompt: Encoded
    cond: Tensor
    uncond: Tensor
    layout: Layout = Layout()


class Guidance(Protocol):
    """Another way to use the noise gap: called once per model call of one run, in order; may keep state."""

    def __call__(self, gap: Tensor, step: Step) -> Tensor:
        """Return the noise gap, in the layout of the step, that the sampler's guidance scale is applied to instead."""


@dataclass(frozen=True)
class Treatment:
    """What is done to a run.

    Attributes:
        edits: inside cross-attention, from the first call to the last.
        prompt: rows of text in place of the prompt's; None keeps them.
        reference: in place of the negative prompt's; None keeps them.
        noise: starting noise of unit variance, in place of the run's own.
        guidance: one after the other on the noise gap.
        images: numbers of the images that are treated, where others of the batch are left as they are; None is all.
        notes: what is to be done, or why nothing is.
        deeds: those of the notes that name something to be done, each with the names of its parts: "edit 0",
            "guidance 1", "prompt", "reference", "noise". What came of them is told by ``memguard.mitigations.effect``.
        claimed: the parts that a deed names already.

    """

    edits: tuple[Edit, ...] = ()
    prompt: Encoded | None = None
    reference: Encoded | None = None
    noise: Tensor | None = None
    guidance: tuple[Guidance, ...] = ()
    images: Tensor | None = None
    notes: tuple[str, ...] = ()
    deeds: tuple[tuple[str, frozenset[str]], ...] = ()
    claimed: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def changes(self) -> bool:
        """Whether anything is changed."""
        return bool(self.edits or self.guidance) or any(
            value is not None for value in (self.prompt, self.reference, self.noise)
        )

    @property
    def parts(self) -> dict[str, Any]:
        """What is changed, by name."""
        named = {"prompt": self.prompt, "reference": self.reference, "noise": self.noise}
        edits = {f"edit {number}": edit for number, edit in enumerate(self.edits)}
        guidance = {f"guidance {number}": each for number, each in enumerate(self.guidance)}
        return edits | guidance | {name: part for name, part in named.items() if part is not None}

    def predicts_as(self, other: Treatment) -> bool:
        """Whether the first step is predicted alike under both; only the use of its noise gap may differ."""
        names = ("prompt", "reference", "noise")
        return self.edits == other.edits and all(getattr(self, name) is getattr(other, name) for name in names)

    def note(self, text: str) -> Treatment:
        """Return the same with one more note; it stands for the parts that no note before it stands for."""
        parts = self.parts
        new = frozenset(name for name, part in parts.items() if self.claimed.get(name) is not part)
        deeds = (*self.deeds, (text, new)) if new else self.deeds
        return replace(self, notes=(*self.notes, text), deeds=deeds, claimed=parts)


@dataclass(frozen=True)
class Mitigation(ABC):
    """A way to reduce memorization, with its parameters.

    Its fields are settings, checked when one is made; docs/parameters.md lists them all.
    """

    NAME: ClassVar[str]
    TITLE: ClassVar[str]
    SOURCE: ClassVar[str]

    _: KW_ONLY
    strength: float = setting(
        1.0,
        "How much of a mitigation: 1 is the paper's own. auto has its own.",
        "Between 0 and 1 it goes a part of the way.",
        least=0,
        most=1,
        step=0.05,
        neutral=0,
    )
    parity: Parity = setting(
        None,
        "Whose numbers.",
        kind=str,
        choices={"official": "what the official code does, where that differs from the paper"},
    )

    def __post_init__(self) -> None:
        for name, each in of(self).items():
            object.__setattr__(self, name, each.read(f"{self.NAME}: {name}", getattr(self, name)))

    def treat(self, start: Start, before: Treatment) -> Treatment:
        """Return the treatment of a run, on top of the one before; the same object at strength 0.

        Raises:
            Unsuitable: if the mitigation cannot act on this run.

        """
        return before if self.strength == 0 else self._treat(start, before)

    @abstractmethod
    def _treat(self, start: Start, before: Treatment) -> Treatment:
        """Return the treatment at a strength above 0."""

    def attach(self, pipe: Any) -> Any:
        """Apply to every call of a diffusers pipeline, memorized or not: a context manager; leaves nothing behind."""
        from .. import treat  # the door to the hosts; the core imports none

        return treat(self, pipe)


def blend(a: Encoded, b: Encoded, share: float) -> Encoded:
    """Return the prompt ``share`` of the way from a to b; exactly b at 1."""
    if share == 1:
        return b
    pooled = a.pooled if a.pooled is None or b.pooled is None else torch.lerp(a.pooled, b.pooled.to(a.pooled), share)
    return Encoded(torch.lerp(a.text, b.text.to(a.text), share), pooled)
