"""MemGuard Report: what MemGuard found for the run that made a latent."""

from comfy_api.latest import io

from ..memguard.hosts.comfyui.latents import NOT_WATCHED, missing
from .types import CATEGORY, Handle, output_of, report_outputs


class MemGuardReport(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_Report",
            display_name="MemGuard Report",
            category=CATEGORY,
            description="Shows what MemGuard found for the run that made this latent, also when nodes came from the "
            "cache, and hands it on as plain values.",
            inputs=[
                io.Latent.Input("latent", tooltip="The sampler's latent; it passes through unchanged."),
                Handle.Input(
                    "memguard",
                    optional=True,
                    tooltip="The handle of the MemGuard node that watched the sampler's model. Not connected, as when "
                    "that node is bypassed: the run was not watched.",
                ),
            ],
            outputs=report_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(cls, latent, memguard=None):
        if memguard is None:
            return output_of(missing(NOT_WATCHED), latent)
        return output_of(memguard.report_of(latent["samples"]), latent, [memguard.home])


NODES = [MemGuardReport]
