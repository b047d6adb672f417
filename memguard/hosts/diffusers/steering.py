"""Carries out a treatment in one pipeline run: other text, noise and edits before each model call, another gap after.

Room: memguard.hosts, diffusers. May import: memguard.mitigations, memguard.loop, torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...mitigations.base import Treatment
from ...mitigations.edit import OTHER, Edit, Plan
from .calls import Call, by_name, output_of, prompt_of, tensor_of, with_latents, with_prompt
from .edits import PLAN, Editor
from .levels import level
from .rows import OWN, SWAPPED, Encoded, Prompts, Unscored
from .starting import Count, gain, groups_of, step

TWO_CALLS = "this pipeline predicts with and without the prompt in two calls, and the guidance needs both in one"
NO_GUIDANCE = "guidance is off, so there is no guidance to change"

Choose = Callable[[Call, dict[str, slice]], Treatment]


class Steering:
    """The hooks of one run.

    Args:
        pipe: the pipeline.
        module: its denoiser.
        prompts: what it encodes in this run.
        count: told the rows that the treatment costs.
        choose: asked at the first model call, before it is made, for the treatment of the run; None leaves the run as
            it is until ``adopt``.

    """

    def __init__(
        self, pipe: Any, module: nn.Module, prompts: Prompts, count: Count, choose: Choose | None = None
    ) -> None:
        self.pipe, self.module, self.prompts, self.count, self.choose = pipe, module, prompts, count, choose
        self.editor = Editor(module)
        self.treatment = Treatment()
        self.latents: Tensor | None = None  # that the pipeline starts from
        self.calls = 0
        self._groups: Tensor | None = None
        self._seen: Tensor | None = None
        self._roles: list[str] = []
        self._token: Any = None
        self._plan_for: Any = None  # what the plan below was made for; it holds for all calls of a run
        self._planned: Plan | None = None

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
        arguments = by_name(module, args, kwargs)
        if self.calls == 0 and self.choose is not None:
            call = Call.of(module, args, kwargs, None)
            self.adopt(self.choose(call, self.blocks(call.text)))
            arguments = with_latents(arguments, self._noise(call))
        if not self.treatment.changes:
            return None
        blocks = self.blocks(arguments["encoder_hidden_states"])
        self._token = PLAN.set(self._plan(arguments, blocks))
        changed = self._exchanged(arguments, blocks)
        if changed is not arguments:
            SWAPPED.set((changed["encoder_hidden_states"], self._roles))
        return (), changed

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return the output of a model call with the gap that guidance is to be applied to; None leaves it."""
        if OWN.get():
            return None
        if self._token is not None:
            PLAN.reset(self._token)
            self._token = None
        self.calls += 1
        if not self.treatment.guidance:
            return None
        return self._guided(Call.of(module, args, kwargs, output), output)

    def adopt(self, treatment: Treatment) -> None:
        """Take a treatment for the calls that follow; its noise goes into the pipeline's own latents."""
        self.treatment = treatment
        if treatment.noise is not None and self.latents is not None:
            noise = treatment.noise.to(self.latents)
            if noise.shape != self.latents.shape:  # Flux packs its latents
                noise = with_latents({"hidden_states": self.latents}, noise)["hidden_states"]
            images = slice(None) if treatment.images is None else treatment.images
            with torch.no_grad():
                self.latents[images] = (noise * self._initial())[images]

    def again(self, call: Call, blocks: dict[str, slice], treatment: Treatment) -> tuple[Call, Any]:
        """Make the first call again under a treatment; return it and its output."""
        self.count(len(call.text))
        arguments = with_latents(call.arguments, self._noise(call, treatment))
        arguments = self._exchanged(arguments, blocks, treatment)
        token = PLAN.set(self._plan(arguments, blocks, treatment))
        own = OWN.set(True)
        try:
            output = self.module(**arguments)
        finally:
            OWN.reset(own)
            PLAN.reset(token)
        made = Call.of(self.module, (), arguments, output)
        return made, output

    def guided(self, call: Call, output: Any) -> Any:
        """Return an output of the first call with the gap of the treatment's guidance."""
        changed = self._guided(call, output) if self.treatment.guidance else None
        return output if changed is None else changed

    def _noise(self, call: Call, treatment: Treatment | None = None) -> Tensor | None:
        treatment = treatment or self.treatment
        noise, images = treatment.noise, treatment.images
        if noise is None:
            return None
        blocks = len(call.x) // len(noise)
        found = (noise * self.scale(call)).to(call.x).repeat(blocks, 1, 1, 1)
        if images is None:
            return found
        x = call.x.clone()  # the other images' own, to the last bit
        rows = torch.cat([images + block * len(noise) for block in range(blocks)])
        x[rows] = found[rows]
        return x

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

    def _exchanged(
        self, arguments: dict[str, Any], blocks: dict[str, slice], treatment: Treatment | None = None
    ) -> dict[str, Any]:
        treatment = treatment or self.treatment
        given = {"cond": treatment.prompt, "uncond": treatment.reference}
        if not any(given[role] is not None for role in blocks):
            return arguments
        whole = prompt_of(arguments)
        text = whole.text.clone()
        pooled = None if whole.pooled is None else whole.pooled.clone()
        for role, rows in blocks.items():
            prompt = given[role]
            if prompt is not None:
                text[rows] = prompt.text.to(text)
                if pooled is not None and prompt.pooled is not None:
                    pooled[rows] = prompt.pooled.to(pooled)
        return with_prompt(arguments, Encoded(text, pooled))

    def _plan(
        self, arguments: dict[str, Any], blocks: dict[str, slice], treatment: Treatment | None = None
    ) -> Plan | None:
        edits = (treatment or self.treatment).edits
        if not edits:
            return None
        text = arguments["encoder_hidden_states"]
        sigma = level(self.pipe.scheduler, torch.as_tensor(arguments["timestep"])).sigma
        key = (edits, tuple(blocks.items()), text.shape, text.device)
        if self._plan_for != key:
            self._plan_for, self._planned = key, self._new_plan(edits, text, blocks)
        assert self._planned is not None
        self._planned.step, self._planned.sigma = self.calls, sigma
        return self._planned

    def _new_plan(self, edits: tuple[Edit, ...], text: Tensor, blocks: dict[str, slice]) -> Plan:
        conditional = torch.zeros(len(text), dtype=torch.bool, device=text.device)
        if "cond" in blocks:
            conditional[blocks["cond"]] = True
        found = None
        table = self._table(text, blocks)
        if table is not None and "cond" in blocks:
            found = torch.full(text.shape[:2], OTHER, dtype=torch.int8, device=text.device)
            found[blocks["cond"]] = table
        return Plan(edits, conditional, found)

    def _table(self, text: Tensor, blocks: dict[str, slice]) -> Tensor | None:
        if self._groups is None:
            rows = len(text) // len(blocks)
            table = groups_of(self.pipe, self.prompts.texts, text.shape[1], rows)
            self._groups = None if table is None else table.to(text.device)
        return self._groups

    def _guided(self, call: Call, output: Any) -> Any:
        blocks = self._split(len(call.text))  # its text may be the treatment's, by which rows cannot be told
        cond, uncond = blocks["cond"], blocks["uncond"]
        here = level(self.pipe.scheduler, call.timestep)
        units = gain(here)
        x = call.x[cond]
        both = here.convert(call.prediction[cond], x), here.convert(call.prediction[uncond], x)
        groups = self._table(call.text, blocks)
        now = step(self.pipe, call, cond, self.calls - 1, float(self.pipe.guidance_scale), both, groups, self.count)
        before = gap = both[0] - both[1]
        for guidance in self.treatment.guidance:
            gap = guidance(gap, replace(now, cond=both[1] + gap))
        if gap is before:
            return None
        changed = tensor_of(output).clone()
        channels = call.prediction.shape[1]
        rows = slice(None) if self.treatment.images is None else self.treatment.images
        moved = (changed[uncond, :channels].float() + gap / units).to(changed)
        changed[cond, :channels][rows] = moved[rows]
        return output_of(output, changed)


def suitable(treatment: Treatment, blocks: dict[str, slice], given: bool) -> Treatment:
    """Return a treatment without the guidance that this pipeline has no place for, and the reason in its notes."""
    if not treatment.guidance or {"cond", "uncond"} <= set(blocks):
        return treatment
    return replace(treatment, guidance=()).note(f"guidance was left alone: {TWO_CALLS if given else NO_GUIDANCE}")


def keeping_latents(pipe: Any, steering: Callable[[], Steering | None]) -> dict[str, Callable[..., Any]]:
    """Return the ``prepare_latents`` for ``methods`` that tells a run's steering which tensor it starts from."""
    original = getattr(type(pipe), "prepare_latents", None)
    if original is None:
        return {}

    def prepare_latents(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        now = steering()
        if now is None or OWN.get():
            return result
        first, *rest = result if isinstance(result, tuple) else (result,)
        now.latents = first.clone()  # some pipelines hand the user's own tensor through
        return (now.latents, *rest) if isinstance(result, tuple) else now.latents

    prepare_latents.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    return {"prepare_latents": prepare_latents}
