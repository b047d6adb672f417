"""ComfyUI nodes: schemas only, one file per node, each with a few lines that call memguard.hosts.comfyui.

Imported relatively by the pack's entry point; may import: comfy_api, memguard.hosts.comfyui.
"""

from comfy_api.latest import ComfyExtension, io

from ..memguard.hosts.comfyui import profiles, routes
from . import calibrate, check_prompt, guard, load_profile, overlay, report, token_attribution


class MemGuardExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        profiles.register()
        routes.register()
        files = (guard, report, check_prompt, token_attribution, overlay, calibrate, load_profile)
        return [node for file in files for node in file.NODES]
