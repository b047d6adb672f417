"""Carries out a treatment in one pipeline run: other text, noise and edits before a model call, another gap after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from torch import Tensor, nn

from ...host import ROLES, Role
from ...mitigations.base import Treatment
from ...mitigations.effect import Effect
from ...run import Run
from ...sampling import Made, Unwatched
from .calls import Call, as_given, by_name, with_latents
from .combination import Alike
from .edits import PLAN, Editor, following
from .halves import Halves
from .hooks import Trouble
from .latents import Latents
from .layouts import Layout
from .pair import Pair
from .pipes import learns_variance
from .putting import Plans, exchanged
from .reader import Reader
from .rows import OWN, SWAPPED, Prompts, Unscored, own
from .sampling import Again, Sampling

Choose = Callable[[Pair], Treatment]


class Steering:
    """The hooks of one run.

    Args:
        pipe: the pipeline.
        module: its denoiser.
        prompts: what it encodes in this run.
        run: of the guard, or Unwatched.
        trouble: of the run.
        cfg: guidance scale that the pipeline was called with, if it tells none itself.
        reader: scores the first step; None where nobody does.
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
        run: Run | Unwatched,
        trouble: Trouble,
        cfg: float | None = None,
        reader: Reader | None = None,
        choose: Choose | None = None,
    ) -> None:
        self.pipe, self.module, self.prompts, self.run, self.choose = pipe, module, prompts, run, choose
        self.trouble, self.cfg, self.reader = trouble, cfg, reader
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
        self.first: Effect | None = None  # of the calls that were made again, until their predictions are used
        self.plans = Plans(pipe, prompts)
        self._sampling: Sampling | None = None
        self._seen: Tensor | None = None
        self._roles: list[str] = []
        self._planned = False  # whether layers follow a plan of this run's now

    def pair(self, calls: Sequence[tuple[Call, Mapping[Role, slice]]], scale: float | None = None) -> Pair:
        """Return a step's predictions, of calls and which of their rows carry the prompt and which do not."""
        others: dict[Role, Any] = {"prompt": self.prompts.cond, "negative": self.prompts.uncond}
        return Pair(self.pipe.scheduler, calls, self.latents, self.guidance if scale is None else scale, others)

    def sampling(self, pair: Pair) -> Sampling:
        """Return the driver of the run."""
        if self._sampling is None:
            self._sampling = Sampling(self.run, pair, self.editor, self.latents, self.plans, self.reader)
        return self._sampling

    def blocks(self, text: Tensor) -> dict[Role, slice]:
        """Return which rows of a call carry the prompt and which do not.

        Raises:
            Unscored: if they cannot be told.

        """
        if self._seen is not text:
            self._seen, self._roles = text, self.prompts.roles(text)
        if not set(self._roles) <= {"prompt", "negative"} or len(set(self._roles)) < len(self._roles):
            raise Unscored(
                f"one model call holds the rows {' + '.join(self._roles)}; only prompt and negative are known"
            )
        return self._split(len(text))

    def _split(self, rows: int) -> dict[Role, slice]:
        n = rows // len(self._roles)
        return {cast(Role, role): slice(i * n, (i + 1) * n) for i, role in enumerate(self._roles)}

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments of a model call under the treatment; the signature is that of a forward pre-hook."""
        if OWN.get():
            return None
        self._asked, self.plans.under = None, PLAN.get()
        arguments = by_name(module, args, kwargs)
        if self.choose is not None:
            call, (choose, self.choose) = Call.of(module, args, kwargs, None), (self.choose, None)
            self.adopt(choose(self.pair([(call, self.blocks(call.text))])), call.layout)
            self._asked = args, kwargs
            noise = self.treatment.noise
            x = None if noise is None else self.latents.noisy(call, noise, self.treatment.images)
            arguments = with_latents(arguments, x, call.layout)
        if not self.treatment.changes:
            return None
        self._asked = args, kwargs
        blocks = self.blocks(arguments["encoder_hidden_states"])
        if self._in_two():
            self._stand()
        plan = self.plans.plan(arguments, blocks, self.treatment.edits, self.effect, self.calls)
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
            self.halves.own[cast(Role, self._roles[0])] = Call.of(
                module, args, kwargs, output, learns_variance(self.pipe)
            )
        else:
            if self.treatment.guidance:
                call = Call.of(module, args, kwargs, output, learns_variance(self.pipe))
                # its text may be the treatment's, by which rows cannot be told
                given = self._guided(self.pair([(call, self._split(len(call.text)))]), output)
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
        self.first, self.calls = None, self.calls + 1
        self.treated, self._waits = self.treated + self._waits, 0
        return received

    def _exchanged(self, halves: Halves, received: Tensor, sample: Any) -> Tensor:
        found = halves.combined(received, sample, self.cfg)
        used = [(each := halves.used(role), {role: slice(0, len(each.text))}) for role in ROLES]
        pair = self.pair(used, found.scale)
        moved = bool(self.treatment.guidance) and self._move(pair)
        if not moved and not halves.again:
            return received
        cond, uncond = (pair.prediction(role) for role in ROLES)
        made = halves.put(found, received, cond, uncond, self.treatment.images)
        if self.first is not None:
            self.effect.join(self.first)
        if moved:
            self.effect.written()
        return made

    def plain(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return what the model says to the pipeline's own arguments, after trouble in a treated call; else None."""
        if OWN.get() or self._asked is None:
            return None
        (args, kwargs), self._asked = self._asked, None
        with own(module), following(self.plans.under):
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
        self.treatment, self.effect = treatment, self.run.carry(treatment)
        self.latents.take(treatment, layout, self.effect)

    def guided(self, pair: Pair, again: Made | None, output: Any) -> Any:
        """Return the output of the first call, made again or not, with the gap of the treatment's guidance."""
        if isinstance(again, Again):
            pair, (output,) = again.pair, again.outputs
            self.effect.join(again.effect)
        changed = self._guided(pair, output) if self.treatment.guidance else None
        return output if changed is None else changed

    def wait(self, pair: dict[Role, Call], again: Made | None) -> None:
        """Let the scheduler's step of two calls, which were the first, take what was made again of them.

        Args:
            pair: the calls by role, that of the prompt first.
            again: the same under the treatment; None where it predicts alike.

        """
        made = [call for call, _ in again.pair.calls] if isinstance(again, Again) else []
        self.halves = Halves(dict(pair), dict(zip(pair, made, strict=False)))
        self.first, self.calls, self._waits = None if again is None else again.effect, 0, len(pair)
        self._stand()

    @property
    def guidance(self) -> float:
        """The guidance scale of the run."""
        own = getattr(self.pipe, "guidance_scale", None)
        return float(own if isinstance(own, int | float) else self.cfg or 0.0)

    def _guided(self, pair: Pair, output: Any) -> Any:
        if not self._move(pair):
            return None
        made = pair.output(output)
        self.effect.written()
        return made

    def _move(self, pair: Pair) -> bool:
        """Put the prediction that leads to the gap of the treatment's guidance; return whether there is another."""
        moved = self.sampling(pair).guided(pair, self.calls, self.effect)
        if moved is None:
            return False
        pair.put({"prompt": moved}, self.treatment.images)
        return True
