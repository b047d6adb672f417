"""An extension beside MemGuard in SD.Next: breaks functions of MemGuard, interrupts, and counts what is left behind.

Its one argument is "break NAME", a dotted name below MemGuard's package, "late NAME", which breaks from the second call
on, or "interrupt", at the second model call.
After each generation it prints how much stands in the loaded pipeline and the host's modules that is not theirs.
"""

import importlib
import sys

import gradio as gr
from modules import processing_args, processing_diffusers, script_callbacks, scripts, shared

PACK = "memguard_webui_pack"
_broken: list = []  # place, name, what stood there
_counting: list = []


class Beside(scripts.Script):
    def title(self):
        return "Beside"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox("", label="wish", visible=False)]

    def before_process(self, p, asked=""):
        if asked.startswith("break "):
            _break(asked.removeprefix("break "))
        if asked.startswith("late "):
            _break(asked.removeprefix("late "), 1)
        if asked == "interrupt":
            calls = []

            def second(*_):
                calls.append(True)
                if len(calls) == 2:
                    shared.state.interrupt()

            _counting.append(shared.sd_model.unet.register_forward_hook(second))


def _break(name, after=0):
    parts = name.split(".")
    place = sys.modules[PACK]
    for number, part in enumerate(parts[:-1], 1):
        try:
            place = importlib.import_module(".".join([PACK, *parts[:number]]))
        except ModuleNotFoundError:  # a class
            place = getattr(place, part)
    kept, calls = place.__dict__[parts[-1]], []
    _broken.append((place, parts[-1], kept))

    def broken(*args, **kwargs):
        calls.append(True)
        if len(calls) <= after:
            return kept(*args, **kwargs)
        raise KeyError(f"{name} is broken")

    setattr(place, parts[-1], broken)


def _after(p):
    while _broken:
        setattr(*_broken.pop())
    while _counting:
        _counting.pop().remove()
    if not any(isinstance(each, Beside) for each in p.scripts.alwayson_scripts):  # a check of ours, not yet at its end
        return
    pipe = shared.sd_model
    modules = [module for part in (pipe.unet, pipe.text_encoder, pipe.vae) for module in part.modules()]
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules)
    forwards = sum("forward" in vars(module) for module in pipe.unet.modules())
    layered = type(pipe).__mro__[1].__name__ == type(pipe).__name__
    replaced = processing_diffusers.set_pipeline_args is not processing_args.set_pipeline_args
    print(f"beside: {hooks + forwards + layered + replaced + ('step' in vars(pipe.scheduler))} left", file=sys.stderr)


script_callbacks.on_after_process(_after)
