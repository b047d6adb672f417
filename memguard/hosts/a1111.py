"""AUTOMATIC1111's WebUI: predictions by prompt come from ``on_cfg_denoised``, so watching costs no row.

A mitigation writes into what was predicted, in place, and into the text of the calls that follow; other starting noise
starts the sampler once more.
"""

from __future__ import annotations

from typing import Any

import torch
from modules import launch_utils, prompt_parser

from ..sampling import treated
from . import a1111_prompts as words
from .a1111_call import Call, beside
from .webui import model, prompts, watch
from .webui.session import Session

NAME = "a1111"
OLD = "this WebUI is older than 1.10 and tells no script that a sampler starts, so the starting noise stays as it is"


def version() -> str:
    """Return the host's version."""
    return str(launch_utils.git_tag())


class Watch(watch.Watch):
    """The callbacks of one session.

    Args:
        session: of one press of Generate.

    """

    OLD = OLD

    def __init__(self, session: Session) -> None:
        super().__init__(session, words)
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
        self._call = call = Call(params, self.restarts)
        p, now = call.p, self.session.now
        if now is None or now.key is not call.denoiser:
            unet = p.sd_model.model.diffusion_model
            if not self.prepared(call.denoiser.sampler):
                self.before_sampling(unet, call.denoiser.sampler, running=True)
            notes = prompts.unscored(prompt_parser, p)
            name = model.name_of(unet, p.sd_model)
            now = self.session.begin(call.denoiser, self.place(p), model=name, notes=notes, **model.facts(p))
            now.reader = self.reader
            call.restarts = self.restarts
        self.expect(call.rows * [True] + len(call.parts) * [False], call.level.sigma)
        now.arm(len(call.parts), call.columns, call.total, call.alone, call.level.sigma)
        treatment = self.treatment
        if treatment is None or not call.alone:
            return
        with self.treating(now):
            call.exchange(treated(call.given, treatment, self.effect))
            params.text_cond, params.text_uncond = call.text, call.reference

    def after(self, params: Any) -> None:
        """Take what it predicted (``on_cfg_denoised``), and change it in place under a treatment."""
        call, now, self._call = self._call, self.session.now, None
        if call is not None and now is not None:
            call.raw = params.x
            self.take(now, call)

    @staticmethod
    def network(engine: Any) -> torch.nn.Module | None:
        """Return the UNet of the loaded model, None where there is none."""
        return getattr(getattr(engine, "model", None), "diffusion_model", None)


network, text_engine = Watch.network, words.text_engine
