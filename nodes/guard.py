"""MemGuard: watches every sampler that gets its model."""

from comfy_api.latest import io

from ..memguard import Guard
from ..memguard.detectors import available
from ..memguard.hosts.comfyui.watcher import Watcher
from ..memguard.table import GUARD
from .types import CATEGORY, Handle, MitigationType, input_of, policy_input, profile_input


class MemGuard(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard",
            display_name="MemGuard",
            category=CATEGORY,
            description="Watches a model: every sampler that gets it tells whether its prompt makes the model copy "
            "training data. Watching costs no evaluation and changes no pixel; with policy mitigate, a run that looks "
            "memorized becomes a new picture of the same prompt.",
            inputs=[
                io.Model.Input("model", tooltip="The model to watch, after LoRA and other model nodes or before them."),
                input_of("detectors", GUARD["detector"], "It needs clip.", options=sorted(available())),
                policy_input(mitigate=True),
                *(input_of(name, GUARD[name]) for name in ("sensitivity", "steps", "reference")),
                io.Conditioning.Input(
                    "empty",
                    optional=True,
                    tooltip="The empty prompt, encoded; used by reference empty. Not connected: the negative prompt "
                    "stands in, and the report says so.",
                ),
                profile_input(),
                io.Clip.Input(
                    "clip",
                    optional=True,
                    tooltip="The text encoder that the prompt goes through: names the words that drive a run, and maps "
                    "where they act in the picture; mitigations tell words from padding with it. Not connected: no "
                    "words.",
                ),
                input_of("explain", GUARD["explain"], "Needs clip.", optional=True),
                MitigationType.Input(
                    "mitigation",
                    optional=True,
                    tooltip=f"{GUARD['mitigation'].says} Not connected: auto. Other policies leave it alone.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The watched model; connect it to the sampler."),
                Handle.Output(display_name="memguard", tooltip="Connect it to MemGuard Report."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model,
        detectors,
        policy,
        sensitivity,
        steps,
        reference,
        empty=None,
        profile=None,
        clip=None,
        explain="flagged",
        mitigation=None,
    ):
        chosen = (mitigation or "auto") if policy == "mitigate" else None
        guard = Guard([detectors], policy, chosen, profile, steps, sensitivity, reference)
        watcher = Watcher(guard, empty, home=cls.hidden.unique_id, clip=clip, explain=explain)
        return io.NodeOutput(watcher.install(model), watcher)


NODES = [MemGuard]
