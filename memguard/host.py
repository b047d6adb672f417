"""What a host is to the core: a model call that can be made again, a network whose attention follows edits, texts.

A new host fills in these three; ``memguard.sampling`` does with them what policy ``mitigate`` asks for. All tensors are
per image, never per row of the network, and predictions are in units of epsilon (velocity for flow models).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from .attributions.moment import Encoded
from .layout import Layout
from .mitigations.base import Encode
from .mitigations.edit import Edit
from .mitigations.effect import Effect
from .records import Parameterization

Role = Literal["prompt", "negative"]
ROLES: tuple[Role, Role] = ("prompt", "negative")


@dataclass(frozen=True)
class Level:
    """How noisy a model call is; the fields are those of StepEvidence.

    Attributes:
        sigma: noise level of the latents, in the sampler's own units.
        sigma_max: that of pure noise.
        timestep: on the model's schedule, 0..1000; None where it has none.
        parameterization: what predictions are in units of.
        full_noise: whether the run starts from noise alone; None where that is not known.

    """

    sigma: float
    sigma_max: float
    timestep: float | None = None
    parameterization: Parameterization = "epsilon"
    full_noise: bool | None = None


class Call(Protocol):
    """One model call of a run, just made, for B images.

    Attributes:
        level: how noisy it is.
        scale: guidance scale that its predictions are joined with.
        x: noisy latents, [B, C, h, w] for pictures, as the sampler has them.
        noise: of unit variance, what the run started from, float32 as ``x``; None where it cannot start from another.
        given: what the network was conditioned on, B rows each; under a treatment that of the treatment. A prompt that
            cannot be exchanged (joined of several) is missing, and so is a negative prompt without guidance.
        predicted: float32, in the shape of ``x``; what the host left out is missing.
        why: in words for a person, why something is missing in ``predicted``; "" where nothing is.
        coverage: where both predictions act, bool [B or 1, 1, ...]; None is everywhere.
        layout: how ``x`` lies.

    """

    @property
    def level(self) -> Level: ...  # noqa: D102 it stands above

    @property
    def scale(self) -> float: ...  # noqa: D102 likewise

    @property
    def x(self) -> Tensor: ...  # noqa: D102 likewise

    @property
    def noise(self) -> Tensor | None: ...  # noqa: D102 likewise

    @property
    def given(self) -> Mapping[Role, Encoded]: ...  # noqa: D102 likewise

    @property
    def predicted(self) -> Mapping[Role, Tensor]: ...  # noqa: D102 likewise

    @property
    def why(self) -> str: ...  # noqa: D102 likewise

    @property
    def coverage(self) -> Tensor | None: ...  # noqa: D102 likewise

    @property
    def layout(self) -> Layout: ...  # noqa: D102 likewise

    def latents(self, noise: Tensor, images: Tensor | None = None) -> Tensor:
        """Return the noisy latents of a run that starts from other noise of unit variance.

        Args:
            noise: in the shape of ``x``.
            images: numbers of those that do; the others keep ``x`` bit for bit. None is all.

        """

    def predict(self, role: Role, prompt: Encoded, x: Tensor) -> Tensor:
        """Return the prediction of latents with a prompt in the place of a role's; follows torch's gradient mode."""


class Network(Protocol):
    """The network of a run.

    Attributes:
        widths: layer -> number of value neurons of its cross-attention; empty without such layers.

    """

    @property
    def widths(self) -> dict[str, int]: ...  # noqa: D102 it stands above

    def following(
        self, edits: tuple[Edit, ...], call: Call, effect: Effect | None = None
    ) -> AbstractContextManager[Any]:
        """Let cross-attention follow edits while ``call.predict`` asks with the prompt."""

    def gradients(self) -> AbstractContextManager[Any]:
        """Let autograd through, for the time of the block."""


class Texts(Protocol):
    """The prompts of a run.

    Attributes:
        known: one text per image, or one for all; empty where they are not known.

    """

    known: tuple[str, ...]

    def eos_padded(self, width: int) -> int:
        """Return how many of a text's features, from the first on, an encoder makes that fills prompts up with EOS."""

    def table(self, columns: int) -> Tensor | None:
        """Return what stands in each column of the prompts, int8 [B or 1, columns]; None where that is not known."""

    @property
    def encode(self) -> Encode | None:
        """Encodes other texts as the host encodes its own, one row each; None where it cannot."""

    def word(self, number: int) -> str | None:
        """Return the text of a token of CLIP's vocabulary; None where there is no such tokenizer."""
