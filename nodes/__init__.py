"""ComfyUI nodes: schemas only, one file per node, each with a few lines that call memguard.hosts.comfyui.

Imported relatively by the pack's entry point.
"""

from comfy_api.latest import ComfyExtension, io

from ..memguard.hosts.comfyui import profiles, routes
from . import (
    adjust_noise,
    attention_scaling,
    audit_lora,
    calibrate,
    check_prompt,
    compare,
    find_copies,
    find_neurons,
    guard,
    guidance_delay,
    load_neurons,
    load_profile,
    mitigation,
    neuron_mask,
    optimize_prompt,
    overlay,
    report,
    token_attribution,
)


class MemGuardExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        profiles.register()
        routes.register()
        watching = (guard, report, check_prompt, token_attribution, overlay, calibrate, load_profile)
        treating = (attention_scaling, guidance_delay, neuron_mask, mitigation, optimize_prompt, adjust_noise)
        files = (*watching, *treating, compare, load_neurons, find_neurons, find_copies, audit_lora)
        return [node for file in files for node in file.NODES]
