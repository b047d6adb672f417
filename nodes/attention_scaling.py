"""MemGuard Attention Scaling: attention is drawn away from the padding (Ren et al., ECCV 2024)."""

from comfy_api.latest import io

from ..memguard.mitigations import get
from .types import CATEGORY, mitigated, mitigation_inputs, mitigation_outputs


class MemGuardAttentionScaling(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_AttentionScaling",
            display_name="MemGuard Attention Scaling",
            category=CATEGORY,
            description="Multiplies what cross-attention gives to the beginning of the prompt, and leaves the padding "
            "behind its words out, where memorized prompts rest (Ren et al., ECCV 2024). SD1, SD2, SDXL.",
            inputs=[
                io.Float.Input(
                    "bos_scale",
                    default=1.25,
                    min=0.01,
                    max=10.0,
                    step=0.05,
                    tooltip="c1: what the logit of the prompt's first token is multiplied by; 1 changes nothing.",
                ),
                io.Boolean.Input("mask_padding", default=True, tooltip="Leave the padding out of the attention."),
                io.Boolean.Input("mask_eos", default=False, tooltip="Leave the end of the prompt out too."),
                *mitigation_inputs(),
            ],
            outputs=mitigation_outputs(),
        )

    @classmethod
    def execute(cls, bos_scale, mask_padding, mask_eos, strength, model=None, clip=None, mitigation=()):
        settings = {"bos_scale": bos_scale, "mask_padding": mask_padding, "mask_eos": mask_eos, "strength": strength}
        return mitigated(get("attention_scaling", **settings), model, clip, mitigation)


NODES = [MemGuardAttentionScaling]
