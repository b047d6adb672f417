"""Forge and Forge Neo: predictions by prompt come from a function after the guidance, on a clone of the pass's model.

``cond_denoised`` and ``uncond_denoised`` are denoised latents x0 for every sampler, with real noise levels; AND
sub-prompts come as their mean by weight. Where the prediction without the prompt is skipped it is all zeros. The host
resets the model before each pass, so nothing has to be taken out again. Functions must be closures: a clone copies
callable objects together with what they hold.

May import: the WebUI's modules and backend, memguard's core.
"""

from __future__ import annotations

from typing import Any

import torch
from modules import prompt_parser, shared
from torch import Tensor

from ..attributions.moment import Encoded
from ..mitigations.base import Step, Treatment, View
from ..mitigations.effect import Effect
from ..records import StepEvidence
from . import forge_prompts as words
from .forge_call import Call, columns, exchanged, text, treated
from .forge_prompts import text_engine
from .inference import differentiable, normal
from .webui import model, prompts, starting, tokens
from .webui.first import Again, Made, guided, read_again, treat_first
from .webui.session import SAME, SKIPPED, Pass
from .webui.treated import Treated

GUIDANCE_OFF = "cfg is 1, so the WebUI predicts nothing without the prompt"
UNGUIDED = "cfg is 1, so there is no guidance to change, and no prediction without the prompt to guide by"
REFINED = "the refiner took over before the first prediction, and Forge gives it a model of its own"
REFINER = "from the refiner's first step on, which has a model of its own, nothing is watched or mitigated"
AND = "the prompt is joined of several by AND, and only one prompt can be mitigated"


def network(engine: Any) -> Any:
    """Return the denoising network of the loaded model, None where there is none."""
    objects = getattr(engine, "forge_objects", None)
    return None if objects is None else objects.unet.model.diffusion_model


class Watch(Treated):
    """Watches the passes of one session.

    Args:
        session: of one press of Generate.

    """

    REPEATS = True

    def before_pass(self, p: Any) -> None:
        """Put our functions into the model of the pass that is about to be sampled; hires calls this twice."""
        self._watch(p, p.sampler, False)

    def _watch(self, p: Any, sampler: Any, running: bool) -> None:
        engine, session = p.sd_model, self.session
        key = (sampler, p.iteration, bool(getattr(p, "is_hr_pass", False)))
        session.prepare(key)
        unet = engine.forge_objects.unet.clone()
        self.before_sampling(unet.model.diffusion_model, sampler, running)
        name = model.name_of(unet.model.diffusion_model, engine)
        notes = prompts.unscored(prompt_parser, p)
        now = session.begin(key, self.place(p), model=name, notes=notes, **model.facts(p))
        now.reader = self.reader
        if refined(p) and not now.missing:  # hires asks twice
            now.missing = REFINED
            now.run.learn(notes=(*now.run.report.notes, REFINER))
        empty = words.empty(p) if session.guard.reference == "empty" else None
        scales = [model.cfg(p)]

        def asked(network, x, timestep, uncond, cond, scale, options, seed):
            scales[0] = scale
            with session.careful():
                now.arm(len(x), columns(cond), total(p), len(cond) == 1, float(timestep[0]))
            with self.treating(now):
                cond, uncond = treated(cond, uncond, self.treatment, self.effect)
            return network, x, timestep, uncond, cond, scale, options, seed

        def look(args: dict[str, Any]) -> Tensor:
            made: list[Tensor] = []
            with session.careful():
                if now.reader is not None:
                    now.reader.disarm()
                call = Call(p, args, scales[0])
                if call.uncond is not None:
                    now.follow(call.level, call.gap)
                found = now.look(lambda number: self._evidence(now, number, call, empty))
                now.explain(found, lambda: words.asked(call))
                now.scored()
                self.carry(now, lambda: made.append(self._treat(now, call, empty)))
            self.cancel()
            return made[0] if made else args["denoised"]

        unet.add_conditioning_modifier(asked)
        unet.set_model_sampler_post_cfg_function(look)
        engine.forge_objects.unet = unet

    def before(self, params: Any) -> None:
        """Nothing, as the model's own functions see more; but for a pass of which no script was told."""
        if not self.prepared(params.denoiser.sampler):
            self._watch(params.denoiser.p, params.denoiser.sampler, True)

    def after(self, params: Any) -> None:
        """Nothing: Forge never calls ``on_cfg_denoised``."""

    def interrupt(self) -> None:
        """End the sampling at once, where the host was told to stop."""
        cancelled()

    def _evidence(self, now: Pass, number: int, call: Call, empty: Encoded | None) -> StepEvidence | str:
        """Return the evidence of one model call, or why there is none."""
        p, images = call.p, len(call.x)
        if empty is None:
            if call.uncond is None:
                return GUIDANCE_OFF
            if not bool(call.without.any()):
                return SKIPPED
            if len(call.cond) == 1 and tokens.same(text(call.cond), text(call.uncond)):
                return SAME
            uncond = call.noise(call.without)
        else:
            if len(call.cond) == 1 and tokens.same(text(call.cond), empty.expand(images)):
                return SAME
            now.run.extra_rows += images
            uncond = call.predict([exchanged(call.cond[0], empty.expand(images))], call.x)
        return StepEvidence(
            step=number,
            num_steps=now.run.count or now.run.report.steps or 0,
            sigma=call.level,
            sigma_max=float(call.model.predictor.sigma_max),
            timestep=call.timestep,
            noise_cond=call.noise(call.with_prompt),
            noise_uncond=uncond,
            parameterization="flow_velocity" if call.flow else "epsilon",
            family=now.run.report.family,
            reference="empty" if now.run.guard.reference == "empty" else "negative",
            full_noise=None if model.from_picture(p) else True,
            prompts=model.numbers(p.prompts),
            **now.read(lambda: tokens.endings(text_engine(p.sd_model), words.first(p), columns(call.cond))),
        )

    def _treat(self, now: Pass, call: Call, empty: Encoded | None) -> Tensor:
        """Return the result of a call: the first one of a flagged run mitigated, each one of a treated run guided."""
        denoised = call.denoised
        if call.uncond is None:
            if now.run.to_mitigate:
                self.alone(now, UNGUIDED)
            return denoised
        if now.run.to_mitigate:
            denoised = self._mitigate(now, call, empty)
        treatment = self.treatment
        skipped = not bool(call.without.any())
        if treatment is None or not treatment.guidance or len(call.cond) != 1 or skipped:
            return denoised
        cond, uncond = call.noise(call.with_prompt), call.noise(call.without)
        step = Step(
            now.calls - 1,
            now.run.report.steps or 0,
            call.level,
            call.timestep,
            call.scale,
            lambda view: self._predict(now, call, view),
            text(call.cond),
            cond,
            uncond,
        )
        with torch.inference_mode(False), torch.no_grad():
            assert self.effect is not None
            changed = guided(self.effect, step)
        if changed is cond:
            return denoised
        made = self._kept(call, call.guided(call.back(changed), call.without))
        self.effect.written()
        return made

    def _mitigate(self, now: Pass, call: Call, empty: Encoded | None) -> Tensor:
        if len(call.cond) != 1:
            self.alone(now, AND)
            return call.denoised
        unet = call.p.sd_model.forge_objects.unet

        def make(treatment: Treatment) -> Made:
            effect, x = Effect(treatment), self._latents(call, treatment)
            effect.changed("noise", call.x, x)
            given, other = treated(call.cond, call.uncond, treatment, effect)
            reader = now.reader if now.run.guard.attention else None
            with self.editor.following(treatment.edits, effect):
                cond, attention = read_again(reader, treatment, len(x), columns(given), lambda: call.predict(given, x))
            now.run.extra_rows += 2 * len(x)
            return Made(cond, call.predict(other, x), effect, attention)

        def compared(treatment: Treatment) -> Tensor:
            assert empty is not None
            now.run.extra_rows += len(call.x)
            other = exchanged(call.cond[0], empty.expand(len(call.x)))
            return call.predict([other], self._latents(call, treatment))

        with torch.inference_mode(False), torch.no_grad():
            began = self._start(now, call, unet)
            treatment, made = treat_first(now.run, began, make, None if empty is None else compared)
        if not treatment.changes:
            return call.denoised
        restarted = treatment.noise is not None
        self.adopt(now, treatment, None if made is None or restarted else made.effect)
        if restarted:
            now.run.extra_rows += 2 * len(call.x)  # the sampler asks for the first step once more
            raise Again
        call.cond, call.uncond = treated(call.cond, call.uncond, treatment, None)
        if made is None:
            return call.denoised
        cond, uncond = (call.back(noise).to(call.x) for noise in (made.cond, made.uncond))
        found = call.guided(cond, uncond)
        call.with_prompt, call.without, call.denoised = cond, uncond, self._kept(call, found)
        return call.denoised

    def _kept(self, call: Call, found: Tensor) -> Tensor:
        """Return a call's result for the images that are treated; the others keep theirs."""
        images = None if self.treatment is None else self.treatment.images
        return found if images is None else call.denoised.index_copy(0, images, found[images])

    def _start(self, now: Pass, call: Call, unet: Any) -> Any:
        p, engine = call.p, call.p.sd_model
        self.edit(unet.model.diffusion_model)
        pure = not model.from_picture(p) and self.restarts and call.timestep is not None
        return starting.start(
            starting.First(
                prompt=text(call.cond),
                reference=text(call.uncond),
                noise=normal(call.x).float() / self._unit(call) if pure else None,
                size=tuple(call.x.shape[1:]),
                sigma=call.level,
                predict=lambda view: self._predict(now, call, view),
                gradients=lambda: differentiable(unet.model),
                cancelled=cancelled,
            ),
            now.run.report,
            self.editor,
            text_engine(engine),
            lambda texts: engine.get_learned_conditioning(
                prompt_parser.SdConditioning(texts, width=p.width, height=p.height)
            ),
            words.first(p),
        )

    def _predict(self, now: Pass, call: Call, view: View) -> Tensor:
        now.run.extra_rows += len(call.x)
        conds = [exchanged(call.cond[0], view.prompt)]
        with self.editor.following(view.edits):
            return call.predict(conds, self._latents(call, view))

    def _latents(self, call: Call, view: View | Treatment) -> Tensor:
        x = call.x
        if view.noise is None:
            return x
        moved = (view.noise * self._unit(call)).to(x)
        images = getattr(view, "images", None)
        return moved if images is None else normal(x).index_copy(0, images, moved[images])

    def _unit(self, call: Call) -> float:
        """Return what noise of unit variance is multiplied by in the sampler's latents."""
        one = torch.ones(1, 1, 1, 1, device=call.x.device)
        full = bool(shared.opts.sgm_noise_multiplier)  # the host's setting, off by default: as at the largest level
        scaled = call.model.predictor.noise_scaling(call.sigma[:1].reshape(1, 1, 1, 1), one, 0 * one, full)
        return float(scaled)

    def _rows(self, rows: int, named: dict[str, Any], who: str = "edit") -> list[bool]:
        chunks = named.get("transformer_options", {}).get("cond_or_uncond", ())
        return [kind == 0 for kind in chunks for _ in range(rows // len(chunks))] if chunks else []


def total(p: Any) -> int | None:
    """Return the number of calls that the pass's sampler makes; some make several in each step."""
    return getattr(getattr(p.sampler, "model_wrap_cfg", None), "total_steps", None)


def refined(p: Any) -> bool:
    """Whether a refiner takes over during the pass."""
    return str(getattr(p, "refiner_checkpoint", None) or "none").lower() != "none" and bool(p.refiner_switch_at != 1)


def cancelled() -> None:
    """End the sampling, if the user pressed interrupt or skip."""
    from modules.sd_samplers_common import InterruptedException

    if shared.state.interrupted or shared.state.skipped:
        raise InterruptedException
