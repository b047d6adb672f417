"""A WebUI as the contract asks for it, in its own process: the host's pipeline, MemGuard's own script and callbacks."""

from __future__ import annotations

import sys
from contextlib import closing
from functools import partial
from typing import Any
from unittest import mock

import torch
from memguard_webui_pack.extension import controls, webui
from memguard_webui_pack.extension import host as ours
from modules import processing, prompt_parser, rng, scripts, shared

STEPS = 4
FIRST = 999  # timestep of Euler's first call: the last of the training schedule


class Keep(scripts.Script):
    """Keeps the latents as the sampler leaves them."""

    filename, args_from, args_to, alwayson, name = __file__, 0, 0, True, "keep"

    def __init__(self) -> None:
        self.latents: list[torch.Tensor] = []

    def title(self) -> str:
        return self.name

    def post_sample(self, p: Any, sampled: Any, *args: Any) -> None:
        self.latents.append(sampled.samples.detach().clone())
        blank = torch.zeros(3, p.height, p.width)  # nobody looks at the pictures
        sampled.samples = processing.DecodedSamples(len(sampled.samples) * [blank])


def _watched(watch: Any, guard: Any, ended: list[BaseException | None], settings: Any) -> Any:
    """Return the watch of another guard than the settings'; what ends its generation goes to ``ended``."""
    made = watch(settings, guard=guard)
    stop = made.session.stop

    def stopped(text: str) -> None:
        ended.append(sys.exc_info()[1])
        stop(text)

    made.session.stop = stopped
    return made


class WebUI:
    """See ``tests.hosts.contract.Host``.

    Attributes:
        steps: of a run.
        negative: prompt of all runs.

    """

    steps = STEPS

    def __init__(self) -> None:
        self.engine = ours.engine()
        self.network = ours.adapter().network(self.engine)
        self.negative = ""
        self._count, self._error, self._button = 0, None, None
        self._counting = self.network.register_forward_pre_hook(self._before)

    def close(self) -> None:
        """Take out what counts."""
        self._counting.remove()

    def _before(self, network: torch.nn.Module, args: Any) -> None:
        self._count += len(args[0])
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if self._button is not None:
            self._button -= 1
            if self._button < 0:
                self._button = None
                shared.state.interrupt()

    def sample(self, guard, prompts=("a red fox",), cfg=7.5, size=(8, 8), seed=3):
        script, keep, runner = webui.MemGuardScript(), Keep(), scripts.ScriptRunner()
        script.filename, script.args_from, script.args_to, script.alwayson = webui.__file__, 0, 1, True
        runner.scripts = runner.alwayson_scripts = [script, keep]
        given = {"enabled": False} if guard is None else {"policy": guard.policy, "explain": "never"}
        asked = {"sampler_name": "Euler", "scheduler": "Automatic", "steps": self.steps, "cfg_scale": cfg, "seed": seed}
        asked |= {"prompt": list(prompts), "negative_prompt": self.negative, "batch_size": len(prompts), "n_iter": 1}
        asked |= {"height": 8 * size[0], "width": 8 * size[1], "do_not_save_samples": True, "do_not_save_grid": True}
        ended: list[BaseException | None] = []
        shared.state.begin(job="contract")
        try:
            with closing(processing.StableDiffusionProcessingTxt2Img(sd_model=self.engine, **asked)) as p:
                p.scripts, p.script_args = runner, (given,)
                with mock.patch.object(ours, "watch", partial(_watched, ours.watch, guard, ended)):
                    processing.process_images(p)
        finally:
            shared.state.end()
        if ended:  # the hosts end a generation by their stop button, which tells nobody why
            assert getattr(p, controls.HELD).session.stopped == str(ended[0])
            raise ended[0]
        return torch.cat(keep.latents)

    def noise(self, images, seed=3, size=(8, 8)):
        return rng.ImageRNG((4, *size), [seed + image for image in range(images)]).next()

    def rows(self):
        return self._count

    def hooks(self):
        layers = list(self.network.modules())
        found = sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in layers)
        found += sum("forward" in vars(layer) for layer in layers)
        if not ours.FORGE:
            return found
        # each pass begins with a copy of this; its own model goes with it
        options = self.engine.forge_objects_after_applying_lora.unet.model_options
        return found + sum(len(each) for each in options.values() if isinstance(each, list))

    def break_model(self, error):
        self._error = error

    def interrupt(self, call):
        self._button = call

    def score(self, prompt, size=(8, 8)):
        bar = self._bar()
        sigma = ((1 - bar) / bar) ** 0.5
        x = self.noise(1, size=size) * sigma / (1 + sigma**2) ** 0.5
        with torch.no_grad():
            cond, uncond = (self._predicted(x, text) for text in (prompt, self.negative))
        return float((cond - uncond).norm())

    def _predicted(self, x, text):
        given = prompt_parser.SdConditioning([text], width=8 * x.shape[-1], height=8 * x.shape[-2])
        context = self.engine.get_learned_conditioning(given)
        more = {"transformer_options": {}} if ours.FORGE else {}
        return self.network(x, torch.tensor([FIRST], device=x.device), context=context, **more)

    def _bar(self):
        """Return alpha bar at the first call, of the schedule that Stable Diffusion is trained with."""
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        return float(torch.cumprod(1 - betas, 0)[FIRST])
