"""MemGuard Mitigation: the mitigations that have no node of their own."""

from comfy_api.latest import io

from ..memguard.mitigations import available, get
from ..memguard.mitigations.paraphrase import Paraphrase
from ..memguard.setting import of
from .types import CATEGORY, input_of, mitigated, mitigation_inputs, mitigation_outputs

AUTO = "auto"
TEXT = Paraphrase.NAME
OWN = ("attention_scaling", "guidance_delay", "neuron_mask", "noise_adjustment", "prompt_optimization")  # have a node
HERE = ["padding", "spike_attenuation", "local_guidance", "guard", "random_tokens", TEXT]
OTHERS = [name for name in available() if name not in (*OWN, *HERE)]  # of a file that somebody added


class MemGuardMitigation(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_Mitigation",
            display_name="MemGuard Mitigation",
            category=CATEGORY,
            description="One of the other ways to keep a model from copying, with its paper's settings.",
            inputs=[
                io.Combo.Input(
                    "method",
                    options=[*HERE, AUTO, *OTHERS],
                    default="padding",
                    tooltip="padding: other padding behind the words (SD1, SDXL; needs clip). spike_attenuation: "
                    "weaker peaks of attention. local_guidance: less guidance where the picture is copied. guard: "
                    "guided away from the plain prediction, one more row per step. random_tokens: random words "
                    "(a baseline; needs clip). paraphrase: guided by a second wording (needs clip). auto: what "
                    "MemGuard tries by itself; for its mitigation input only.",
                ),
                input_of("text", of(Paraphrase)["text"], multiline=True),
                *mitigation_inputs(),
            ],
            outputs=mitigation_outputs(),
        )

    @classmethod
    def execute(cls, method, text, strength, model=None, clip=None, mitigation=()):
        if method == AUTO:
            if model is not None:
                raise ValueError("auto decides by a run's score; connect mitigation to MemGuard, or choose a method")
            return io.NodeOutput(None, (*mitigation, AUTO))
        own = {"text": text} if method == TEXT else {}
        return mitigated(get(method, strength=strength, **own), model, clip, mitigation)


NODES = [MemGuardMitigation]
