"""MemGuard Load Neurons and Save Neurons: neuron sets as files below models/memguard."""

from comfy_api.latest import io

from ..memguard.hosts.comfyui import neurons as sets
from ..memguard.neurons import load
from .types import CATEGORY, NeuronsType

NONE = "none yet: run MemGuard Find Neurons"


class MemGuardLoadNeurons(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_LoadNeurons",
            display_name="MemGuard Load Neurons",
            category=CATEGORY,
            description="Loads a set of neurons from models/memguard, for MemGuard Neuron Mask.",
            inputs=[
                io.Combo.Input("name", options=sets.names() or [NONE], tooltip="A file below models/memguard."),
            ],
            outputs=[NeuronsType.Output(display_name="neurons", tooltip="For MemGuard Neuron Mask.")],
        )

    @classmethod
    def validate_inputs(cls, name):
        try:
            sets.path_of(name)
        except ValueError as error:
            return str(error)  # ComfyUI 0.3 does not check a V3 node's list itself
        return True

    @classmethod
    def fingerprint_inputs(cls, name):
        return sets.path_of(name).stat().st_mtime

    @classmethod
    def execute(cls, name):
        return io.NodeOutput(load(sets.path_of(name)))


class MemGuardSaveNeurons(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_SaveNeurons",
            display_name="MemGuard Save Neurons",
            category=CATEGORY,
            description="Saves a set of neurons below models/memguard, for MemGuard Load Neurons and the command line.",
            inputs=[
                NeuronsType.Input("neurons", tooltip="From MemGuard Find Neurons."),
                io.String.Input("name", default="neurons", tooltip="Of the file; one of that name is replaced."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="The saved file.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, neurons, name):
        path = str(sets.save(neurons, name))
        return io.NodeOutput(path, ui={"text": [f"saved {path}"]})


NODES = [MemGuardLoadNeurons, MemGuardSaveNeurons]
