"""An extension that is loaded before MemGuard and is no good neighbour: takes names, patches attention, and fails."""

import sys
import types

from modules import script_callbacks, scripts

for _name in ("nodes", "extension", "memguard"):  # whoever imports these by name gets an empty module
    sys.modules.setdefault(_name, types.ModuleType(_name))


class Neighbour(scripts.Script):
    def title(self):
        return "Neighbour"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p):
        raise RuntimeError("neighbour: process fails")

    def process_batch(self, p, *args, **kwargs):
        objects = getattr(p.sd_model, "forge_objects", None)
        network = p.sd_model.model.diffusion_model if objects is None else objects.unet.model.diffusion_model
        for name, layer in network.named_modules():
            if name.endswith("attn2") and "forward" not in vars(layer):
                layer.forward = _passed_on(layer.forward)
        print("neighbour: attention is patched")


def _passed_on(forward):
    return lambda *args, **kwargs: forward(*args, **kwargs)


def _broken(params):
    raise RuntimeError("neighbour: callback fails")


script_callbacks.on_cfg_denoiser(_broken)
