"""MemGuard Overlay: where in the picture the prompt pulls hardest."""

import numpy as np
import torch
from comfy_api.latest import io

from ..memguard.attributions.maps import normalize, smooth
from ..memguard.hosts.comfyui.latents import NOT_WATCHED
from ..memguard.hosts.comfyui.maps import chosen
from ..memguard.overlay import overlay
from ..memguard.table import EXPLAIN
from .types import CATEGORY, Handle, input_of

WINDOW = 64  # latent pixels that a smoothing of 13 is meant for


class MemGuardOverlay(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_Overlay",
            display_name="MemGuard Overlay",
            category=CATEGORY,
            description="Shows where in the picture the prompt pulls hardest.",
            inputs=[
                io.Image.Input("image", tooltip="The decoded picture."),
                io.Latent.Input("latent", tooltip="The sampler's latent: it tells which run made the picture."),
                Handle.Input(
                    "memguard",
                    optional=True,
                    tooltip="The handle of the MemGuard node that watched the sampler's model. Not connected, as when "
                    "that node is bypassed: the picture passes through, and the mask is empty.",
                ),
                io.Float.Input(
                    "opacity", default=0.6, min=0.0, max=1.0, step=0.05, tooltip="Of the map where it is highest."
                ),
                io.Boolean.Input(
                    "smooth", default=True, tooltip="Average over a neighbourhood; single pixels are noise."
                ),
                input_of(
                    "show",
                    EXPLAIN["maps"],
                    "The last two need clip at MemGuard, and a run that was explained.",
                    optional=True,
                ),
                io.String.Input("word", default="", optional=True, tooltip="Of show word; empty: the heaviest."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The picture in grey below its map, with a legend."),
                io.Mask.Output(display_name="mask", tooltip="The map, 0 to 1, at the picture's size."),
            ],
        )

    @classmethod
    def execute(cls, image, latent, opacity, smooth, memguard=None, show="noise_gap", word=""):
        if memguard is None:
            return io.NodeOutput(image, torch.zeros(image.shape[:3]), ui={"text": [f"MemGuard: {NOT_WATCHED}"]})
        found, label = chosen(memguard.report_of(latent["samples"]), show, word)
        heat = _fitting(found, len(image), smooth)
        pictures = (image * 255).round().to(torch.uint8).cpu().numpy()
        drawn = [overlay(one, each, opacity, label) for one, each in zip(pictures, heat, strict=True)]
        shown = torch.from_numpy(np.stack(drawn)).float() / 255
        scaled = torch.nn.functional.interpolate(
            torch.from_numpy(heat).unsqueeze(1), image.shape[1:3], mode="bilinear", align_corners=False
        )
        return io.NodeOutput(shown, normalize(scaled.squeeze(1)))


def _fitting(found: torch.Tensor, images: int, smoothed: bool) -> np.ndarray:
    """Return the run's map, float32 [images, h, w].

    Raises:
        ValueError: if the picture is not the run's own.

    """
    if len(found) != images:
        raise ValueError(f"the run made {len(found)} pictures, and image holds {images}; connect the run's own picture")
    if smoothed:
        side = max(3, round(13 * min(found.shape[-2:]) / WINDOW) // 2 * 2 + 1)
        found = smooth(found, side)
    return found.numpy()


NODES = [MemGuardOverlay]
