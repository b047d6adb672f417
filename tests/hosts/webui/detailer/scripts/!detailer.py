"""An extension that samples again inside of a generation, in the way that detailers do.

For each picture it calls the scripts' ``postprocess`` with a copy of the processing and an empty result, samples a pass
of its own with the scripts that it likes, and calls ``process`` with another copy. Its argument is the prompt of its
pass; empty for none. "= " in front of the prompt lets its pass keep all scripts.
"""

from copy import copy

import gradio as gr
from modules import scripts
from modules.processing import Processed, StableDiffusionProcessingImg2Img, process_images

LIKED = "soft_inpainting", "hypertile_script"


class Detailer(scripts.Script):
    def title(self):
        return "Detailer"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox("", visible=False)]

    def postprocess_image(self, p, pp, prompt=""):
        if not prompt or getattr(p, "_detailer_off", False):
            return
        if p.batch_index == 0:
            p.scripts.postprocess(copy(p), Processed(p, [], p.seed, ""))
        done = process_images(self._inner(p, pp.image, prompt))
        if done.images:
            pp.image = done.images[0]
        if p.batch_index == p.batch_size - 1:
            again = copy(p)
            p.scripts.before_process(again)
            p.scripts.process(again)

    def _inner(self, p, image, prompt):
        inner = StableDiffusionProcessingImg2Img(
            init_images=[image],
            resize_mode=0,
            denoising_strength=0.5,
            sd_model=p.sd_model,
            prompt=prompt.removeprefix("= "),
            negative_prompt="",
            seed=p.all_seeds[p.iteration * p.batch_size + p.batch_index],
            sampler_name=p.sampler_name,
            scheduler=p.scheduler,
            batch_size=1,
            n_iter=1,
            steps=p.steps,
            cfg_scale=p.cfg_scale,
            width=p.width,
            height=p.height,
            do_not_save_samples=True,
            do_not_save_grid=True,
        )
        runner = copy(p.scripts)
        if not prompt.startswith("= "):
            runner.alwayson_scripts = [
                each for each in runner.alwayson_scripts if any(name in each.filename for name in LIKED)
            ]
        inner.scripts, inner.script_args, inner._detailer_off = runner, p.script_args, True
        return inner
