"""Carries out a treatment in one pipeline run: other text, noise and edits before each model call, another gap after.

Room: memguard.hosts, diffusers. May import: memguard.mitigations, memguard.loop, torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...mitigations.base import Treatment
from ...mitigations.edit import Plan
from ...mitigations.effect import Effect
from .caches import ANSWERED
from .calls import Call, as_given, by_name, output_of, tensor_of, with_latents
from .edits import PLAN, Editor, following
from .hooks import Trouble
from .layouts import Layout
from .levels import level
from .pipes import learns_variance
from .putting import Plans, exchanged
from .rows import OWN, SWAPPED, Prompts, Unscored, own
from .starting import Count, gain, step

TWO_CALLS = "this pipeline predicts with and without the prompt in two calls, and the guidance needs both in one"
NO_GUIDANCE = "guidance is off, so there is no guidance to change"

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
        self.latents: Tensor | None = None  # that the pipeline starts from
        self._own_latents: Tensor | None = None  # as they were drawn, where the treatment has others
        self._asked: tuple[tuple[Any, ...], dict[str, Any]] | None = None  # a treated call, as the pipeline made it
        self.calls = 0
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
        if self.calls == 0 and self.choose is not None:
            call = Call.of(module, args, kwargs, None)
            self.adopt(self.choose(call, self.blocks(call.text)), call.layout)
            self._asked = args, kwargs
            arguments = with_latents(arguments, self._noise(call), call.layout)
        if not self.treatment.changes:
            return None
        self._asked = args, kwargs
        blocks = self.blocks(arguments["encoder_hidden_states"])
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
        if self.treatment.guidance:
            given = self._guided(Call.of(module, args, kwargs, output, learns_variance(self.pipe)), output, self.effect)
        self.calls += 1
        self._asked = None
        return given

    def plain(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return what the model says to the pipeline's own arguments, after trouble in a treated call; else None."""
        if OWN.get() or self._asked is None:
            return None
        (args, kwargs), self._asked = self._asked, None
        with own(module), following(self._under):
            return module(*args, **kwargs)

    def undo(self) -> bool:
        """Leave the treatment after trouble; return whether the run is as if there had been none."""
        self.treatment, self.choose = Treatment(), None
        if self.calls > 0:
            return False
        if self._own_latents is not None and self.latents is not None:
            with torch.no_grad():
                self.latents.copy_(self._own_latents)
        return True

    def _no_plan(self) -> None:
        if self._planned:  # not by its token: hooks end in the order in which they began
            PLAN.set(None)
            self._planned = False

    def keep_latents(self, result: Any) -> Any:
        """Take what ``prepare_latents`` returned; return the same with a copy that may be written to."""
        first, *rest = result if isinstance(result, tuple) else (result,)
        self.latents = first.clone()  # some pipelines hand the user's own tensor through
        return (self.latents, *rest) if isinstance(result, tuple) else self.latents

    def adopt(self, treatment: Treatment, layout: Layout) -> None:
        """Take a treatment for the calls that follow; its noise goes into the pipeline's own latents, as these lie."""
        self.treatment, self.effect = treatment, self.carry(treatment)
        if treatment.noise is not None and self.latents is not None:
            noise = treatment.noise.to(self.latents)
            if noise.shape != self.latents.shape:
                noise = layout.back(noise)
            images = slice(None) if treatment.images is None else treatment.images
            self._own_latents = self.latents.clone()
            with torch.no_grad():
                self.latents[images] = (noise * self._initial())[images]
            self.effect.changed("noise", self._own_latents, self.latents)

    def again(self, call: Call, blocks: dict[str, slice], treatment: Treatment) -> Again:
        """Make the first call again under a treatment.

        Raises:
            Unscored: if the model answers other input with the same tensor: a cache between steps answers.

        """
        effect = Effect(treatment)
        moved = with_latents(call.arguments, self._noise(call, treatment), call.layout)
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

    def _noise(self, call: Call, treatment: Treatment | None = None) -> Tensor | None:
        treatment = treatment or self.treatment
        noise, images = treatment.noise, treatment.images
        if noise is None:
            return None
        blocks = len(call.x) // len(noise)
        found = (noise * self.scale(call)).to(call.x).repeat(blocks, *(1,) * (noise.ndim - 1))
        if images is None:
            return found
        x = call.x.clone()  # the other images' own, to the last bit
        rows = torch.cat([images + block * len(noise) for block in range(blocks)])
        x[rows] = found[rows]
        return x

    @property
    def guidance(self) -> float:
        """The guidance scale of the run."""
        own = getattr(self.pipe, "guidance_scale", None)
        return float(own if isinstance(own, int | float) else self.cfg or 0.0)

    def scale(self, call: Call) -> float:
        """Return what noise of unit variance is multiplied by in the model's input; schedulers scale it twice."""
        given = call.arguments.get("sample", call.arguments.get("hidden_states"))
        if self.latents is None or given is None:
            return 1.0
        latents = self.latents.float()
        x = given[: len(latents), : latents.shape[1]].float()
        if x.shape != latents.shape:
            return 1.0
        ratio = float((x * latents).sum() / latents.square().sum()) * self._initial()
        return 1.0 if math.isclose(ratio, 1.0, rel_tol=1e-4) or not math.isfinite(ratio) else ratio

    def _initial(self) -> float:
        return float(getattr(self.pipe.scheduler, "init_noise_sigma", 1.0))

    def _guided(self, call: Call, output: Any, effect: Effect) -> Any:
        blocks = self._split(len(call.text))  # its text may be the treatment's, by which rows cannot be told
        cond, uncond = blocks["cond"], blocks["uncond"]
        here = level(self.pipe.scheduler, call.timestep)
        x = call.x[cond]
        both = here.convert(call.prediction[cond], x), here.convert(call.prediction[uncond], x)
        groups = self.plans.table(call.text, blocks)
        now = step(self.pipe, call, cond, self.calls, self.guidance, both, groups, self.count)
        before = both[0] - both[1]
        gap = effect.guided(before, now)
        if gap is before:
            return None
        changed = call.layout.latents(tensor_of(output)).clone()
        channels = call.prediction.shape[1]
        rows = slice(None) if self.treatment.images is None else self.treatment.images
        moved = (call.prediction[uncond].float() + gap / gain(here)).to(changed)
        changed[cond, :channels][rows] = moved[rows]
        effect.written()
        return output_of(output, call.layout.back(changed))


@dataclass(frozen=True)
class Again:
    """The first call made again: under what, the call and its output, and what the treatment changed in it."""

    treatment: Treatment
    call: Call
    output: Any
    effect: Effect


def suitable(treatment: Treatment, blocks: dict[str, slice], given: bool) -> Treatment:
    """Return a treatment without the guidance that this pipeline has no place for, and the reason in its notes."""
    if not treatment.guidance or {"cond", "uncond"} <= set(blocks):
        return treatment
    return replace(treatment, guidance=()).note(f"guidance was left alone: {TWO_CALLS if given else NO_GUIDANCE}")


def keeping_latents(
    pipe: Any, steering: Callable[[], Steering | None], trouble: Callable[[], Trouble | None]
) -> dict[str, Callable[..., Any]]:
    """Return the ``prepare_latents`` for ``methods`` that tells a run's steering which tensor it starts from."""
    if getattr(type(pipe), "prepare_latents", None) is None:
        return {}

    def prepare_latents(inner: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        result = inner(self, *args, **kwargs)
        now, guard = steering(), trouble()
        if now is None or guard is None or OWN.get():
            return result
        kept = guard(now.keep_latents, result)
        return result if kept is None else kept

    return {"prepare_latents": prepare_latents}
