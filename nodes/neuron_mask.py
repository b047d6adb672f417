"""MemGuard Neuron Mask: value neurons that carry a memory are silenced (NeMo, NeurIPS 2024)."""

from comfy_api.latest import io

from ..memguard.mitigations.neuron_mask import NeuronMask
from ..memguard.setting import of
from .types import CATEGORY, NeuronsType, input_of, inputs_of, mitigated, mitigation_inputs, mitigation_outputs


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
                input_of("factor", of(NeuronMask)["factor"], "-1: as the set says."),
                *inputs_of(NeuronMask, "force"),
                *mitigation_inputs(clip=False),
            ],
            outputs=mitigation_outputs(),
        )

    @classmethod
    def execute(cls, neurons, factor, force, strength, model=None, mitigation=()):
        own = None if factor < 0 else factor
        made = NeuronMask(neurons=neurons, factor=own, force=force, strength=strength)
        return mitigated(made, model, None, mitigation)


NODES = [MemGuardNeuronMask]
