"""An extension that is loaded before MemGuard and is no good neighbour: takes names, patches attention, and fails.

Its one argument asks for more, in parts that "; " divides: "fail HOOK" lets that hook fail, too, "fail attention" the
network in its third step; "prompts A|B" gives the images of a batch different prompts, which the hosts' API cannot;
"job NAME" names the job, as jobs of one second have one name; "break NAME" lets a function of MemGuard fail; "draw"
lets the network draw random numbers in every call; "keep" lets MemGuard keep mitigations that hardly help the test
bed's model, so that they act on every step. It counts the rows that the network is asked for, and what others have left
in it.
"""

import random
import sys
import types

import gradio as gr
import numpy as np
import torch
from modules import script_callbacks, scripts, shared

for _name in ("nodes", "extension", "memguard"):  # whoever imports these by name gets an empty module
    sys.modules.setdefault(_name, types.ModuleType(_name))
LOOP = "memguard_webui_pack.memguard.loop"
_wishes: list[str] = []
_fails = [False]
_rows: list[int] = []
_counting: list = []
_broken_ones: list = []  # what stood there, the name, the function


class Neighbour(scripts.Script):
    def title(self):
        return "Neighbour"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox("", visible=False)]

    def process(self, p, asked=""):
        _wishes[:], _fails[0] = asked.split("; "), False
        while _broken_ones:
            setattr(*_broken_ones.pop())
        for wish in _wishes:
            if wish.startswith("prompts "):
                p.all_prompts = wish.removeprefix("prompts ").split("|")
            if wish.startswith("break "):
                _break(wish.removeprefix("break "))
            if wish.startswith("job "):
                shared.state.job_timestamp = wish.removeprefix("job ")
        if LOOP in sys.modules:
            loop = sys.modules[LOOP]
            loop.own = getattr(loop, "own", loop.helped)
            loop.helped = (lambda *_: True) if "keep" in _wishes else loop.own
        raise RuntimeError("neighbour: process fails")

    def process_batch(self, p, asked="", **kwargs):
        for layer in _attention(p):
            if "forward" not in vars(layer):
                layer.forward = _passed_on(layer.forward)
        _rows.clear()
        _counting.append(_network(p).register_forward_pre_hook(lambda network, args: _rows.append(len(args[0]))))
        if "draw" in _wishes:
            random.seed(1), np.random.seed(1), torch.manual_seed(1)  # the hosts seed none of the first two
            _counting.append(_network(p).register_forward_hook(_drawing))
        print("neighbour: attention is patched")

    def process_before_every_sampling(self, p, asked="", **kwargs):
        _fail("process_before_every_sampling")

    def postprocess_batch(self, p, asked="", **kwargs):
        while _counting:
            _counting.pop().remove()
        print(f"neighbour: {sum(_rows)} rows")
        print(f"neighbour: {_left(p)} hooks left")
        _fail("postprocess_batch")

    def postprocess(self, p, processed, asked=""):
        _fail("postprocess")


def _drawing(network, args, output):
    """Move all generators, and let the picture tell whether somebody else has moved them, too."""
    return output * (1 + 0.02 * (torch.rand(1) + random.random() + np.random.rand() - 1.5).to(output))


def _break(name):
    """Let a function fail, by its dotted name below MemGuard's package: that of a module, or of a class in one."""
    parts = name.split(".")
    modules = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
    module = next(each for each in modules if f"memguard_webui_pack.{each}" in sys.modules)
    place = sys.modules[f"memguard_webui_pack.{module}"]
    for part in parts[len(module.split(".")) : -1]:
        place = getattr(place, part)
    kept = place.__dict__[parts[-1]]

    def broken(*args, **kwargs):
        raise KeyError(f"neighbour: {name} is broken")

    _broken_ones.append((place, parts[-1], kept))
    setattr(place, parts[-1], broken)


def _fail(hook):
    if f"fail {hook}" in _wishes:
        raise RuntimeError(f"neighbour: {hook} fails")


def _network(p):
    objects = getattr(p.sd_model, "forge_objects", None)
    return p.sd_model.model.diffusion_model if objects is None else objects.unet.model.diffusion_model


def _attention(p):
    return [layer for name, layer in _network(p).named_modules() if name.endswith("attn2")]


def _left(p):
    """Count the hooks of the network's layers, and the attention whose forward is no longer ours."""
    layers = _attention(p)
    hooks = sum(len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in _network(p).modules())
    others = [layer for layer in layers if not getattr(vars(layer).get("forward"), "neighbour", False)]
    named = [part for layer in layers for part in (layer.to_q, layer.to_k, layer.to_v) if "forward" in vars(part)]
    return hooks + len(others) + len(named)


def _passed_on(forward):
    def passed_on(*args, **kwargs):
        if _fails[0]:
            raise RuntimeError("neighbour: attention fails")
        return forward(*args, **kwargs)

    passed_on.neighbour = True
    return passed_on


def _broken(params):
    _fails[0] = "fail attention" in _wishes and params.sampling_step >= 2
    raise RuntimeError("neighbour: callback fails")


script_callbacks.on_cfg_denoiser(_broken)
