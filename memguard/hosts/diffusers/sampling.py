"""memguard.sampling in a pipeline: the first step's model calls are made again whole, as the pipeline made them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ... import host, sampling
from ...host import Role
from ...mitigations.base import Treatment
from ...mitigations.edit import Edit, Plan
from ...mitigations.effect import Effect
from ...run import Run
from ...sampling import Unwatched
from .caches import ANSWERED, differentiable
from .calls import Call, as_given, with_latents
from .edits import PLAN, Editor, following
from .latents import Latents
from .pair import Pair
from .pipes import learns_variance, model_calls
from .putting import Plans, exchanged
from .reader import Reader
from .rows import Unscored
from .texts import Texts

EDITED = "an edit of the attention itself is not scored by attention"


class Network:
    """The denoiser of a run; see memguard.host.Network.

    Args:
        editor: of its cross-attention.
        plans: of the run's calls.

    """

    def __init__(self, editor: Editor, plans: Plans) -> None:
        self.editor, self.plans, self.widths = editor, plans, editor.widths

    def following(
        self, edits: tuple[Edit, ...], call: host.Call, effect: Effect | None = None
    ) -> AbstractContextManager[Any]:
        """Let cross-attention follow edits in calls with the prompt's rows alone."""
        if not edits:
            return following(None)
        own = torch.ones(len(call.x), dtype=torch.bool, device=call.x.device)
        table = self.plans.table(call.given["prompt"].text, {"prompt": slice(None)})
        return following(Plan(edits, own, table, sigma=call.level.sigma, effect=effect))

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Let autograd through the denoiser, for the time of the block."""
        with differentiable(self.editor.module), torch.enable_grad():
            yield


@dataclass(frozen=True, kw_only=True)
class Again(sampling.Made):
    """The first step's calls made again.

    Attributes:
        pair: of them.
        outputs: of the denoiser, one for each.

    """

    pair: Pair
    outputs: tuple[Any, ...]


class Sampling(sampling.Sampling):
    """One run of a pipeline, as far as mitigations need it.

    Args:
        run: of the guard, or Unwatched.
        pair: the first step.
        editor: of the denoiser's cross-attention.
        latents: that the run starts from.
        plans: of the run's calls.
        reader: that has scored the first step; None where nothing is scored.

    """

    def __init__(
        self,
        run: Run | Unwatched,
        pair: Pair,
        editor: Editor,
        latents: Latents,
        plans: Plans,
        reader: Reader | None = None,
    ) -> None:
        texts = Texts(plans.pipe, plans.prompts, pair.calls[0][0], len(pair.x))
        wished = plans.prompts.wished if reader is not None and reader.wish_differs() else None
        super().__init__(run, Network(editor, plans), texts, None if wished is None else wished.head(1))
        self.plans, self._latents, self.reader = plans, latents, reader

    def made(self, call: host.Call, treatment: Treatment) -> Again:
        """Make the first step's calls again under a treatment.

        Raises:
            Unscored: if the model answers other input with the same tensor: a cache between steps answers.

        """
        assert self.reader is not None and isinstance(call, Pair)
        effect = Effect(treatment)
        (first, blocks), *rest = call.calls
        with self.reader.reading_again():
            made = [self._again(first, blocks, treatment, effect)]
        attention = self.reader.attention(made[0][0], blocks["prompt"])
        if treatment.edits and attention.get("attention") is not None:
            attention = {"unread": EDITED}  # what was read are the projections before the edit
        made += [self._again(each, rows, treatment, effect) for each, rows in rest]
        again = call.made([each for each, _ in made])
        return Again(again.predicted, effect, attention, pair=again, outputs=tuple(output for _, output in made))

    def _again(
        self, call: Call, blocks: Mapping[Role, slice], treatment: Treatment, effect: Effect
    ) -> tuple[Call, Any]:
        x = None if treatment.noise is None else self._latents.noisy(call, treatment.noise, treatment.images)
        moved = with_latents(call.arguments, x, call.layout)
        arguments = exchanged(moved, blocks, treatment, effect)
        self.plans.under = self.plans.under or PLAN.get()
        plan = self.plans.plan(arguments, blocks, treatment.edits, effect, 0)
        with following(plan or self.plans.under):
            output = call.made(arguments)
        self.run.extra_rows += len(call.text)
        args, kwargs = as_given(call.module, arguments, call.positional)
        made = Call.of(call.module, args, kwargs, output, learns_variance(self.plans.pipe))
        if (arguments is not moved or x is not None) and torch.equal(made.prediction, call.prediction):
            raise Unscored(ANSWERED)
        return made, output

    def count(self) -> int:
        """Return how many calls of the model the pipeline makes, 0 where it cannot tell."""
        return model_calls(self.plans.pipe)
