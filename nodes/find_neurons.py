"""MemGuard Find Neurons: the neurons of cross-attention that carry the memory of a prompt (NeMo, NeurIPS 2024)."""

from comfy_api.latest import io

from ..memguard.hosts.comfyui.neurons import find
from ..memguard.neurons.selection import THRESHOLD
from .types import CATEGORY, SEED_MAX, NeuronsType


class MemGuardFindNeurons(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_FindNeurons",
            display_name="MemGuard Find Neurons",
            category=CATEGORY,
            description="Finds the neurons of cross-attention that carry the memory of a prompt (Hintersdorf et al., "
            "NeurIPS 2024), for MemGuard Neuron Mask. SD1, SD2, SDXL; takes minutes.",
            inputs=[
                io.Model.Input("model", tooltip="The model that copies."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Latent.Input("latent", tooltip="A latent of the size that will be sampled."),
                io.String.Input("text", multiline=True, tooltip="The memorized prompt."),
                io.Int.Input(
                    "seed",
                    default=1,
                    min=0,
                    max=SEED_MAX,
                    control_after_generate=False,  # the page would search anew after each run
                    tooltip="Of the starting noise.",
                ),
                io.Int.Input("images", default=10, min=2, max=64, tooltip="How many seeds are compared."),
                io.Float.Input(
                    "threshold",
                    default=THRESHOLD,
                    min=0.01,
                    max=0.99,
                    step=0.001,
                    tooltip="Likeness (MS-SSIM) of two seeds from which a prompt counts as memorized; the paper's for "
                    "SD1.4.",
                ),
                io.Combo.Input(
                    "mode",
                    options=["fast", "official"],
                    default="fast",
                    tooltip="fast: about a tenth of the evaluations. official: the paper's own procedure.",
                ),
                io.Boolean.Input(
                    "all_layers", default=False, tooltip="Search all cross-attention, not its early layers only."
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Ordinary prompts to compare with, one per line, better some hundreds. Empty: 80 of those "
                    "that MemGuard ships.",
                ),
            ],
            outputs=[
                NeuronsType.Output(display_name="neurons", tooltip="For MemGuard Neuron Mask and Save Neurons."),
                io.String.Output(display_name="said", tooltip="What was found and what it cost."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, clip, latent, text, seed, images, threshold, mode, all_layers, prompts=""):
        own = [line.strip() for line in prompts.splitlines() if line.strip()]
        found = find(model, clip, text, latent, seed, images, threshold, mode, all_layers, own or None)
        count = sum(map(len, found.indices.values()))
        said = f"{count} neurons in {len([1 for each in found.indices.values() if each])} layers; {found.provenance}"
        return io.NodeOutput(found, said, ui={"text": [said]})


NODES = [MemGuardFindNeurons]
