"""MemGuard Neuron Mask: value neurons that carry a memory are silenced (NeMo, NeurIPS 2024)."""

from comfy_api.latest import io

from ..memguard.mitigations import get
from .types import CATEGORY, NeuronsType, mitigated, mitigation_inputs, mitigation_outputs

OWN = -1.0


class MemGuardNeuronMask(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_NeuronMask",
            display_name="MemGuard Neuron Mask",
            category=CATEGORY,
            description="Silences the neurons of cross-attention that carry a memory (Hintersdorf et al., NeurIPS "
            "2024). It conceals the memory and does not erase it.",
            inputs=[
                NeuronsType.Input("neurons", tooltip="From MemGuard Load Neurons or Find Neurons."),
                io.Float.Input(
                    "factor",
                    default=OWN,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip="What the neurons are multiplied by: 0 silences, 1 changes nothing. -1: as the set says.",
                ),
                io.Boolean.Input(
                    "force", default=False, tooltip="Use a set that was made for another checkpoint, a close one."
                ),
                *mitigation_inputs(clip=False),
            ],
            outputs=mitigation_outputs(),
        )

    @classmethod
    def execute(cls, neurons, factor, force, strength, model=None, mitigation=()):
        own = None if factor < 0 else factor
        made = get("neuron_mask", neurons=neurons, factor=own, force=force, strength=strength)
        return mitigated(made, model, None, mitigation)


NODES = [MemGuardNeuronMask]
