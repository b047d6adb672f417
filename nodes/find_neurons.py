"""MemGuard Find Neurons: the neurons of cross-attention that carry the memory of a prompt (NeMo, NeurIPS 2024)."""

from comfy_api.latest import io

from ..memguard.hosts.comfyui.neurons import find
from ..memguard.table import NEURONS
from .types import CATEGORY, SEED_MAX, NeuronsType, input_of


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
                    default=NEURONS["seed"].default,
                    min=0,
                    max=SEED_MAX,
                    control_after_generate=False,  # the page would search anew after each run
                    tooltip="Of the starting noise.",
                ),
                input_of("images", NEURONS["num_images"]),
                input_of("threshold", NEURONS["threshold"]),
                input_of("mode", NEURONS["mode"]),
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
