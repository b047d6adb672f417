"""MemGuard: watches every sampler that gets its model."""

from comfy_api.latest import io

from ..memguard import Guard
from ..memguard.detectors import available
from ..memguard.hosts.comfyui.watcher import Watcher
from .types import CATEGORY, Handle, MitigationType, policy_input, profile_input, sensitivity_input


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
                io.Combo.Input(
                    "detectors",
                    options=sorted(available()),
                    default="text_noise_norm",
                    tooltip="What to measure. text_noise_norm: how strongly the prompt bends the first prediction. "
                    "attention_entropy: how widely cross-attention is spread there (UNets; weaker). "
                    "attention_entropy_late: the same in the last fifth of the steps (needs clip).",
                ),
                policy_input(mitigate=True),
                sensitivity_input(),
                io.Int.Input(
                    "steps",
                    default=1,
                    min=1,
                    max=50,
                    tooltip="Number of model calls to score, from the first on; the score is their mean. "
                    "Profiles of MemGuard Calibrate are for 1.",
                ),
                io.Combo.Input(
                    "reference",
                    options=["negative", "empty"],
                    default="negative",
                    tooltip="What the prompt is compared with. negative: the sampler's own negative prompt, free. "
                    "empty: the empty prompt, one more evaluation per image; the way to a score at cfg 1.",
                ),
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
                io.Combo.Input(
                    "explain",
                    options=["flagged", "always", "never"],
                    default="flagged",
                    optional=True,
                    tooltip="Which runs to explain; needs clip. The words cost one pass forward and back at the first "
                    "step, the maps the time to read attention at every step. No pixel changes.",
                ),
                MitigationType.Input(
                    "mitigation",
                    optional=True,
                    tooltip="What policy mitigate applies to a run that looks memorized. Not connected: auto, the "
                    "cheapest first, at most three attempts. Other policies leave it alone.",
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
