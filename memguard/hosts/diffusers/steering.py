"""Carries out a treatment in one pipeline run: other text, noise and edits before each model call, another gap after.

Room: memguard.hosts, diffusers. May import: memguard.mitigations, memguard.loop, torch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...mitigations.base import Treatment
from ...mitigations.edit import Plan
from ...mitigations.effect import Effect
from .caches import ANSWERED
from .calls import Call, as_given, by_name, output_of, tensor_of, with_latents
from .combination import Alike
from .edits import PLAN, Editor, following
from .halves import Halves
from .hooks import Trouble
from .latents import Latents
from .layouts import Layout
from .levels import gain, level
from .pipes import learns_variance
from .putting import Plans, exchanged
from .rows import OWN, SWAPPED, Prompts, Unscored, own
from .starting import Count, step

Choose = Callable[[Call, dict[str, slice]], Treatment]
Carry = Callable[[Treatment], Effect]


class Steering:
    """The hooks of one run.

    Args:
        pipe: the pipeline.
        module: its denoiser.
        prompts: what it encodes in this run.
        count: told the rows that the treatment costs.
        trouble: of the run.
        cfg: guidance scale that the pipeline was called with, if it tells none itself.
        carry: gives what is told of a treatment that is carried out, such as ``Run.carry``.
        choose: asked at the first model call, before it is made, for the treatment of the run; None leaves the run as
            it is until ``adopt``.

    Attributes:
        listen: lets ``put`` stand in the scheduler's step; called once, where a step is predicted in two calls.

    """

    def __init__(
        self,
        pipe: Any,
        module: nn.Module,
        prompts: Prompts,
        count: Count,
        trouble: Trouble,
        cfg: float | None = None,
        carry: Carry = Effect,
        choose: Choose | None = None,
    ) -> None:
        self.pipe, self.module, self.prompts, self.count, self.choose = pipe, module, prompts, count, choose
        self.trouble, self.carry, self.cfg = trouble, carry, cfg
        self.editor = Editor(module, trouble)
        self.treatment = Treatment()
        self.effect = Effect(self.treatment)
        self.latents = Latents(pipe)
        self._asked: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # a treated call, as the pipeline made it
        self.calls = 0  # of which each predicts a step, or pairs of calls that do
        self.treated = 0  # of the denoiser, under the treatment
        self.halves = Halves()
        self.listen: Callable[[], object] = lambda: None
        self._listens = False
        self._waits = 0  # calls of the first step that are exchanged at the scheduler's
        self.first: tuple[Effect, ...] = ()  # of the calls that were made again, until their predictions are used
        self.plans = Plans(pipe, prompts)
        self._seen: Tensor | None = None
        self._roles: list[str] = []
        self._planned = False  # whether layers follow a plan of this run's now
        self._under: Plan | None = None  # that of another mitigation for the call in progress

    def blocks(self, text: Tensor) -> dict[str, slice]:
        """Return which rows of a call carry the prompt and which do not.

        Raises:
            Unscored: if they cannot be told.

        """
        if self._seen is not text:
            self._seen, self._roles = text, self.prompts.roles(text)
        if not set(self._roles) <= {"cond", "uncond"} or len(set(self._roles)) < len(self._roles):
            raise Unscored(
                f"one model call holds the rows {' + '.join(self._roles)}; only prompt and negative are known"
            )
        return self._split(len(text))

    def _split(self, rows: int) -> dict[str, slice]:
        n = rows // len(self._roles)
        return {role: slice(i * n, (i + 1) * n) for i, role in enumerate(self._roles)}

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments of a model call under the treatment; the signature is that of a forward pre-hook."""
        if OWN.get():
            return None
        self._asked, self._under = None, PLAN.get()
        arguments = by_name(module, args, kwargs)
        if self.choose is not None:
            call, (choose, self.choose) = Call.of(module, args, kwargs, None), (self.choose, None)
            self.adopt(choose(call, self.blocks(call.text)), call.layout)
            self._asked = args, kwargs
            arguments = with_latents(arguments, self.latents.noisy(call, self.treatment), call.layout)
        if not self.treatment.changes:
            return None
        self._asked = args, kwargs
        blocks = self.blocks(arguments["encoder_hidden_states"])
        if self._in_two():
            self._stand()
        plan = self.plans.plan(arguments, blocks, self.treatment.edits, self.effect, self.calls, self._under)
        if plan is not None:
            PLAN.set(plan)
            self._planned = True
        changed = exchanged(arguments, blocks, self.treatment, self.effect)
        if changed is not arguments:
            SWAPPED.set((changed["encoder_hidden_states"], self._roles))
        return as_given(module, changed, len(args))

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return the output of a model call with the gap that guidance is to be applied to; None leaves it."""
        if OWN.get():
            return None
        self._no_plan()
        given = None
        if not self.treatment.changes:
            self.calls, self._asked = self.calls + 1, None
            return None
        if self._in_two():
            # its text may be the treatment's, by which rows cannot be told
            self.halves.own[self._roles[0]] = Call.of(module, args, kwargs, output, learns_variance(self.pipe))
        else:
            if self.treatment.guidance:
                call = Call.of(module, args, kwargs, output, learns_variance(self.pipe))
                given = self._guided(call, output, self.effect)
            self.calls += 1
        self.treated, self._asked = self.treated + 1, None
        return given

    def _stand(self) -> None:
        """Stand in the scheduler's step, once."""
        if not self._listens:
            self._listens = True
            self.listen()

    def _in_two(self) -> bool:
        """Whether the call in progress is one of two that predict a step."""
        return len(self._roles) == 1 and self.prompts.uncond is not None

    def put(self, received: Tensor, timestep: Any, sample: Any) -> Tensor | None:
        """Return what the scheduler is to receive of a step that was predicted in two calls; None leaves it."""
        halves, self.halves = self.halves, Halves()
        if OWN.get() or not halves.whole:
            return None
        if self.treatment.guidance or halves.again:
            with suppress(*(() if halves.again else (Alike,))):  # without a gap there is nothing to guide by
                received = self._exchanged(halves, received, sample)
        self.first, self.calls = (), self.calls + 1
        self.treated, self._waits = self.treated + self._waits, 0
        return received

    def _exchanged(self, halves: Halves, received: Tensor, sample: Any) -> Tensor:
        cond, uncond = halves.used("cond"), halves.used("uncond")
        found = halves.combined(received, sample, self.cfg)
        moved = self._moved(cond, uncond, found.scale) if self.treatment.guidance else None
        if moved is None and not halves.again:
            return received
        predicted = cond.prediction if moved is None else moved
        made = halves.put(found, received, predicted, uncond.prediction, self.treatment.images)
        for each in self.first:
            self.effect.join(each)
        if moved is not None:
            self.effect.written()
        return made

    def plain(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return what the model says to the pipeline's own arguments, after trouble in a treated call; else None."""
        if OWN.get() or self._asked is None:
            return None
        (args, kwargs), self._asked = self._asked, None
        with own(module), following(self._under):
            return module(*args, **kwargs)

    def undo(self) -> bool:
        """Leave the treatment after trouble; return whether the run is as if there had been none."""
        self.treatment, self.choose, self.halves = Treatment(), None, Halves()
        if self.treated > 0:
            return False
        self.latents.restore()
        return True

    def _no_plan(self) -> None:
        if self._planned:  # not by its token: hooks end in the order in which they began
            PLAN.set(None)
            self._planned = False

    def adopt(self, treatment: Treatment, layout: Layout) -> None:
        """Take a treatment for the calls that follow; its noise goes into the pipeline's own latents."""
        self.treatment, self.effect = treatment, self.carry(treatment)
        self.latents.take(treatment, layout, self.effect)

    def again(self, call: Call, blocks: dict[str, slice], treatment: Treatment) -> Again:
        """Make the first call again under a treatment.

        Raises:
            Unscored: if the model answers other input with the same tensor: a cache between steps answers.

        """
        effect = Effect(treatment)
        moved = with_latents(call.arguments, self.latents.noisy(call, treatment), call.layout)
        arguments = exchanged(moved, blocks, treatment, effect)
        under = PLAN.get() if self._under is None else self._under
        plan = self.plans.plan(arguments, blocks, treatment.edits, effect, self.calls, under)
        with following(under if plan is None else plan):
            output = call.made(arguments)
        self.count(len(call.text))
        args, kwargs = as_given(self.module, arguments, call.positional)
        made = Call.of(self.module, args, kwargs, output, learns_variance(self.pipe))
        if (arguments is not moved or treatment.noise is not None) and torch.equal(made.prediction, call.prediction):
            raise Unscored(ANSWERED)
        return Again(treatment, made, output, effect)

    def guided(self, first: Again) -> Any:
        """Return the output of the first call, made again, with the gap of the treatment's guidance."""
        self.effect.join(first.effect)
        changed = self._guided(first.call, first.output, self.effect) if self.treatment.guidance else None
        return first.output if changed is None else changed

    def wait(self, pair: dict[str, Call], kept: tuple[Again, ...]) -> None:
        """Let the scheduler's step of two calls, which were the first, take what was made again of them.

        Args:
            pair: the calls by role, that of the prompt first.
            kept: the same under the treatment; none where it predicts alike.

        """
        self.halves = Halves(dict(pair), {role: each.call for role, each in zip(pair, kept, strict=False)})
        self.first, self.calls, self._waits = tuple(each.effect for each in kept), 0, len(pair)
        self._stand()

    @property
    def guidance(self) -> float:
        """The guidance scale of the run."""
        own = getattr(self.pipe, "guidance_scale", None)
        return float(own if isinstance(own, int | float) else self.cfg or 0.0)

    def _guided(self, call: Call, output: Any, effect: Effect) -> Any:
        blocks = self._split(len(call.text))  # its text may be the treatment's, by which rows cannot be told
        cond, uncond = (call.part(blocks[role]) for role in ("cond", "uncond"))
        moved = self._moved(cond, uncond, self.guidance)
        if moved is None:
            return None
        changed = call.layout.latents(tensor_of(output)).clone()
        channels = call.prediction.shape[1]
        rows = slice(None) if self.treatment.images is None else self.treatment.images
        changed[blocks["cond"], :channels][rows] = moved.to(changed)[rows]
        effect.written()
        return output_of(output, call.layout.back(changed))

    def _moved(self, cond: Call, uncond: Call, scale: float) -> Tensor | None:
        """Return the prediction with the prompt that leads to the gap of the treatment's guidance; None: its own.

        Args:
            cond: the prompt's rows.
            uncond: the others.
            scale: guidance scale.

        """
        here = level(self.pipe.scheduler, cond.timestep)
        both = here.convert(cond.prediction, cond.x), here.convert(uncond.prediction, cond.x)
        groups = self.plans.table(cond.text, {"cond": slice(None)})
        everything = slice(0, len(cond.text))
        now = step(self.pipe, cond, everything, self.calls, scale, both, groups, self.count)
        before = both[0] - both[1]
        gap = self.effect.guided(before, now)
        return None if gap is before else uncond.prediction.float() + gap / gain(here)


@dataclass(frozen=True)
class Again:
    """The first call made again: under what, the call and its output, and what the treatment changed in it."""

    treatment: Treatment
    call: Call
    output: Any
    effect: Effect
