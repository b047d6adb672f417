"""Forge and Forge Neo: predictions by prompt come from a function after the guidance, on a clone of the pass's model.

``cond_denoised`` and ``uncond_denoised`` are denoised latents x0 for every sampler, with real noise levels; AND
sub-prompts come as their mean by weight. Where the prediction without the prompt is skipped it is all zeros. The host
resets the model before each pass, so nothing has to be taken out again. Functions must be closures: a clone copies
callable objects together with what they hold.
"""

from __future__ import annotations

from typing import Any

from modules import prompt_parser
from torch import Tensor

from ..attributions.moment import Encoded
from ..sampling import treated
from . import forge_prompts as words
from .forge_call import Call, Conditionings, columns
from .webui import model, prompts, watch
from .webui.session import Session

REFINED = "the refiner took over before the first prediction, and Forge gives it a model of its own"
REFINER = "from the refiner's first step on, which has a model of its own, nothing is watched or mitigated"


class Watch(watch.Watch):
    """Watches the passes of one session.

    Args:
        session: of one press of Generate.

    """

    REPEATS = True

    def __init__(self, session: Session) -> None:
        super().__init__(session, words)
        self._empty: Encoded | None = None

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
        self._empty = super().empty(p)  # the text encoder is asked before the sampler has the network in memory
        scales = [model.cfg(p)]

        def asked(
            network: Any, x: Any, timestep: Any, uncond: Any, cond: Any, scale: Any, options: Any, seed: Any
        ) -> Any:
            scales[0] = scale
            with session.careful():
                now.arm(len(x), columns(cond), total(p), len(cond) == 1, float(timestep[0]))
            if self.treatment is not None and len(cond) == 1:
                with self.treating(now):
                    conds = Conditionings(cond, uncond)
                    conds.exchange(treated(conds.given, self.treatment, self.effect))
                    cond, uncond = conds.cond, conds.uncond
            return network, x, timestep, uncond, cond, scale, options, seed

        def look(args: dict[str, Any]) -> Tensor:
            denoised = args["denoised"]
            with session.careful():
                call = Call(p, args, scales[0], self.restarts)
                self.take(now, call)
                denoised = call.denoised
            self.cancel()
            return denoised

        unet.add_conditioning_modifier(asked)
        unet.set_model_sampler_post_cfg_function(look)
        engine.forge_objects.unet = unet

    def before(self, params: Any) -> None:
        """Nothing, as the model's own functions see more; but for a pass of which no script was told."""
        if not self.prepared(params.denoiser.sampler):
            self._watch(params.denoiser.p, params.denoiser.sampler, True)

    def after(self, params: Any) -> None:
        """Nothing: Forge never calls ``on_cfg_denoised``."""

    def empty(self, p: Any) -> Encoded | None:
        """Return the empty prompt as it was encoded before the pass."""
        return self._empty

    @staticmethod
    def network(engine: Any) -> Any:
        """Return the denoising network of the loaded model, None where there is none."""
        objects = getattr(engine, "forge_objects", None)
        return None if objects is None else objects.unet.model.diffusion_model

    def _rows(self, rows: int, named: dict[str, Any], who: str = "edit") -> list[bool]:
        chunks = named.get("transformer_options", {}).get("cond_or_uncond", ())
        return [kind == 0 for kind in chunks for _ in range(rows // len(chunks))] if chunks else []


def total(p: Any) -> int | None:
    """Return the number of calls that the pass's sampler makes; some make several in each step."""
    return getattr(getattr(p.sampler, "model_wrap_cfg", None), "total_steps", None)


def refined(p: Any) -> bool:
    """Whether a refiner takes over during the pass."""
    return str(getattr(p, "refiner_checkpoint", None) or "none").lower() != "none" and bool(p.refiner_switch_at != 1)


network, text_engine = Watch.network, words.text_engine
