"""AUTOMATIC1111's WebUI: predictions by prompt come from ``on_cfg_denoised``, so watching costs no row.

Rows are those of ``on_cfg_denoiser``: for each image its AND sub-prompts, then the images without the prompt.
k-diffusion's samplers predict denoised latents x0, of which epsilon is (x - x0) / sigma; the others (DDIM, PLMS, UniPC)
predict epsilon itself, and what is called sigma is their timestep. A mitigation writes into what was predicted, in
place, and into the text of the calls that follow; other starting noise starts the sampler once more.

May import: the WebUI's modules, memguard's core.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from modules import launch_utils, prompt_parser, shared
from torch import Tensor

from ..mitigations.base import Step, Treatment, View
from ..mitigations.effect import Effect
from ..records import StepEvidence
from . import a1111_prompts as words
from .a1111_call import Call, beside, combined
from .a1111_prompts import text_engine
from .webui import model, prompts, starting, tokens
from .webui.first import Again, Made, guided, read_again, treat_first
from .webui.session import SAME, SKIPPED, Pass, Session
from .webui.treated import Treated

NAME = "a1111"
AND = "the prompt is joined of several by AND, and only one prompt can be mitigated"
OLD = "this WebUI is older than 1.10 and tells no script that a sampler starts, so the starting noise stays as it is"
EDIT = "InstructPix2Pix predicts three ways, and a score is of two"


def version() -> str:
    """Return the host's version."""
    return str(launch_utils.git_tag())


def network(engine: Any) -> torch.nn.Module | None:
    """Return the UNet of the loaded model, None where there is none."""
    return getattr(getattr(engine, "model", None), "diffusion_model", None)


class Watch(Treated):
    """The callbacks of one session.

    Args:
        session: of one press of Generate.

    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._call: Call | None = None

    def before_pass(self, p: Any) -> None:
        """A pass is about to be sampled; the one before is over."""
        try:
            self.session.end()
        finally:  # an error of the pass before takes nothing from the one to come
            self.before_sampling(p.sd_model.model.diffusion_model, p.sampler)

    def aside(self, network: torch.nn.Module) -> Any:
        """Return the block around every evaluation of ours; HyperTile draws from a generator of its own."""
        return beside(network)

    def before(self, params: Any) -> None:
        """Take what the model is about to be asked (``on_cfg_denoiser``), under a treatment with its text."""
        self._call = None  # of a call that the model's error has ended
        self.session.prepare(params.denoiser)  # a sampler has a denoiser of its own for each pass
        self._call = call = Call(params)
        p, now = call.denoiser.p, self.session.now
        if now is None or now.key is not call.denoiser:
            unet = p.sd_model.model.diffusion_model
            if not self.prepared(call.denoiser.sampler):
                self.before_sampling(unet, call.denoiser.sampler, running=True)
            notes = prompts.unscored(prompt_parser, p)
            name = model.name_of(unet, p.sd_model)
            now = self.session.begin(call.denoiser, self.place(p), model=name, notes=notes, **model.facts(p))
            now.reader = self.reader
        self.expect(call.rows * [True] + len(call.parts) * [False], call.level)
        now.arm(len(call.parts), call.columns, call.total, call.alone, call.level)
        treatment = self.treatment
        if treatment is None or not call.alone:
            return
        with self.treating(now):
            call.exchange(treatment, self.effect)
            params.text_cond, params.text_uncond = call.text, call.reference

    def after(self, params: Any) -> None:
        """Take what it predicted (``on_cfg_denoised``), and change it in place under a treatment."""
        now = self.session.now
        if self._call is None or now is None:
            return
        call, self._call = self._call, None
        if now.reader is not None:
            now.reader.disarm()
        if len(params.x) == call.rows + len(call.parts):
            now.follow(call.level, call.gap(params.x))
        found = now.look(lambda number: self._evidence(now, number, call, params.x))
        now.explain(found, lambda: words.asked(call))
        now.scored()
        self.carry(now, lambda: self._treat(now, call, params.x))

    def interrupt(self) -> None:
        """End the sampling at once, where the host was told to stop."""
        cancelled()

    def _evidence(self, now: Pass, number: int, call: Call, predicted: Tensor) -> StepEvidence | str:
        images, rows, p = len(call.parts), call.rows, call.denoiser.p
        if len(predicted) != rows + images:
            return EDIT
        first = torch.tensor([each[0][0] for each in call.parts], device=predicted.device)
        empty = words.empty(p) if now.run.guard.reference == "empty" else None
        other = tokens.encoded(call.reference) if empty is None else empty.expand(images)
        if call.alone and tokens.same(tokens.encoded(call.text), other):
            return SAME
        if empty is None and torch.equal(predicted[rows:], predicted[first]):
            return SKIPPED
        noise = call.noise(call.x, predicted)
        uncond = noise[rows:]
        cond = torch.stack([combined(noise, part, uncond[image]) for image, part in enumerate(call.parts)])
        if empty is not None:
            now.run.extra_rows += images
            with torch.no_grad():
                uncond = call.predict(tokens.like(call.text, other), call.x[rows:])
        return StepEvidence(
            step=number,
            num_steps=now.run.count or now.run.report.steps or 0,
            sigma=call.level,
            sigma_max=float(call.levels[-1]),
            timestep=call.timestep,
            noise_cond=cond,
            noise_uncond=uncond,
            family=now.run.report.family,
            reference="empty" if now.run.guard.reference == "empty" else "negative",
            full_noise=None if model.from_picture(p) else True,
            prompts=model.numbers(p.prompts),
            **now.read(lambda: tokens.endings(text_engine(p.sd_model), words.first(p), call.columns)),
        )

    def _treat(self, now: Pass, call: Call, predicted: Tensor) -> None:
        """Mitigate the first step of a flagged run, and guide every step of a treated one."""
        images, rows = len(call.parts), call.rows
        if len(predicted) != rows + images:
            return
        if now.run.to_mitigate:
            self._mitigate(now, call, predicted)
        treatment = self.treatment
        if treatment is None or not treatment.guidance or not call.alone:
            return
        if torch.equal(predicted[rows:], predicted[:rows]):
            return  # the prediction without the prompt was skipped
        noise = call.noise(call.x, predicted)
        cond, uncond = noise[:rows], noise[rows:]
        assert self.effect is not None
        changed = guided(self.effect, self._step(now, call, cond, uncond))
        if changed is not cond:
            moved = call.predicted(call.x[:rows], changed).to(predicted)
            chosen = slice(0, rows) if treatment.images is None else treatment.images
            predicted[:rows][chosen] = moved[chosen]
            self.effect.written()

    def _mitigate(self, now: Pass, call: Call, predicted: Tensor) -> None:
        p, rows = call.denoiser.p, call.rows
        if not call.alone:
            self.alone(now, AND)
            return
        if not self.restarts and not model.from_picture(p):
            now.run.learn(notes=(*now.run.report.notes, OLD))
        began = self._start(now, call)

        def make(treatment: Treatment) -> Made:
            effect, again = Effect(treatment), copy(call)
            again.exchange(treatment, effect)
            x = self._latents(call, treatment)
            effect.changed("noise", call.x[:rows], x)
            with self.editor.following(treatment.edits, effect), torch.no_grad():
                cond, attention = read_again(
                    now.reader if now.run.guard.attention else None,
                    treatment,
                    rows,
                    again.columns,
                    lambda: call.predict(again.text, x),
                )
            with torch.no_grad():
                uncond = call.predict(again.reference, x)
            now.run.extra_rows += 2 * rows
            return Made(cond, uncond, effect, attention)

        empty = words.empty(p) if now.run.guard.reference == "empty" else None

        def compared(treatment: Treatment) -> Tensor:
            assert empty is not None
            now.run.extra_rows += rows
            with torch.no_grad():
                return call.predict(tokens.like(call.text, empty.expand(rows)), self._latents(call, treatment))

        treatment, made = treat_first(now.run, began, make, None if empty is None else compared)
        if not treatment.changes:
            return
        restarted = treatment.noise is not None
        self.adopt(now, treatment, None if made is None or restarted else made.effect)
        if restarted:
            now.run.extra_rows += 2 * rows  # the sampler asks for the first step once more
            raise Again
        call.exchange(treatment, None)
        if made is not None:
            for part, noise in zip((predicted[:rows], predicted[rows:]), (made.cond, made.uncond), strict=True):
                moved = call.predicted(call.x[:rows], noise).to(predicted)
                chosen = slice(None) if treatment.images is None else treatment.images
                part[chosen] = moved[chosen]

    def _start(self, now: Pass, call: Call) -> Any:
        p = call.denoiser.p
        unet = p.sd_model.model.diffusion_model
        self.edit(unet)
        pure = not model.from_picture(p) and self.restarts
        x = call.x[: call.rows].float()
        return starting.start(
            starting.First(
                prompt=tokens.encoded(call.text),
                reference=tokens.encoded(call.reference),
                noise=x / self._unit(call) if pure else None,
                size=(x.shape[1], x.shape[2], x.shape[3]),
                sigma=call.level,
                predict=lambda view: self._predict(now, call, view),
                gradients=lambda: words.gradients(unet),
                cancelled=cancelled,
            ),
            now.run.report,
            self.editor,
            text_engine(p.sd_model),
            lambda texts: p.sd_model.get_learned_conditioning(
                prompt_parser.SdConditioning(texts, width=p.width, height=p.height)
            ),
            words.first(p),
        )

    def _predict(self, now: Pass, call: Call, view: View) -> Tensor:
        now.run.extra_rows += call.rows
        with self.editor.following(view.edits):
            return call.predict(tokens.like(call.text, view.prompt), self._latents(call, view))

    def _latents(self, call: Call, view: View | Treatment) -> Tensor:
        x = call.x[: call.rows]
        if view.noise is None:
            return x
        moved = (view.noise * self._unit(call)).to(x)
        images = getattr(view, "images", None)
        return moved if images is None else x.index_copy(0, images, moved[images])

    def _unit(self, call: Call) -> float:
        """Return what noise of unit variance is multiplied by in the sampler's latents."""
        if call.steps:
            return 1.0
        return float((1 + call.level**2) ** 0.5) if shared.opts.sgm_noise_multiplier else call.level

    def _step(self, now: Pass, call: Call, cond: Tensor, uncond: Tensor) -> Step:
        p, number = call.denoiser.p, now.calls - 1
        scale = float(model.cfg(p) * getattr(call.denoiser, "cond_scale_miltiplier", 1.0))  # the host's own spelling
        return Step(
            number,
            now.run.report.steps or 0,
            call.level,
            call.timestep,
            scale,
            lambda view: self._predict(now, call, view),
            tokens.encoded(call.text),
            cond,
            uncond,
        )


def cancelled() -> None:
    """End the sampling, if the user pressed interrupt or skip."""
    from modules.sd_samplers_common import InterruptedException

    if shared.state.interrupted or shared.state.skipped:
        raise InterruptedException
