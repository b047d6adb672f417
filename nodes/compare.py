"""MemGuard Compare: a picture before and after a mitigation, side by side."""

import numpy as np
import torch
from comfy_api.latest import io

from ..memguard.comparison import compare, table
from .types import CATEGORY, Handle


class MemGuardCompare(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_Compare",
            display_name="MemGuard Compare",
            category=CATEGORY,
            description="Two pictures side by side, before and after a mitigation, with the scores of the run.",
            inputs=[
                io.Image.Input("before", tooltip="The unmitigated picture: of a sampler without MemGuard, same seed."),
                io.Image.Input("after", tooltip="The mitigated picture."),
                io.Latent.Input(
                    "latent", optional=True, tooltip="The mitigated sampler's latent: it tells which run to show."
                ),
                Handle.Input(
                    "memguard",
                    optional=True,
                    tooltip="The MemGuard node that mitigated. With latent: its scores.",
                ),
            ],
            outputs=[io.Image.Output(display_name="image", tooltip="The two pictures with labels and scores.")],
            is_output_node=True,  # so that its report reaches the page from the cache as well
        )

    @classmethod
    def execute(cls, before, after, latent=None, memguard=None):
        if len(before) != len(after):
            raise ValueError(
                f"before holds {len(before)} pictures and after {len(after)}; connect two of one batch size"
            )
        known = latent is not None and memguard is not None
        report = memguard.report_of(latent["samples"]) if known else None
        lines = [] if report is None else table(report)
        pairs = zip(_pictures(before), _pictures(after), strict=True)
        made = [compare(one, other, lines) for one, other in pairs]
        # from the cache as well: then no sampler runs that would tell the page
        shown = None if report is None else {"memguard": [report.to_dict()], "memguard_home": [memguard.home]}
        return io.NodeOutput(torch.from_numpy(np.stack(made)).float() / 255, ui=shown)


def _pictures(images: torch.Tensor) -> np.ndarray:
    """Return pictures as uint8 [B, H, W, 3]."""
    return (images[..., :3] * 255).round().to(torch.uint8).cpu().numpy()


NODES = [MemGuardCompare]
