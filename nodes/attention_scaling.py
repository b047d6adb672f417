"""MemGuard Attention Scaling: attention is drawn away from the padding (Ren et al., ECCV 2024)."""

from comfy_api.latest import io

from ..memguard.mitigations.attention_scaling import AttentionScaling
from .types import CATEGORY, inputs_of, mitigated, mitigation_inputs, mitigation_outputs


class MemGuardAttentionScaling(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_AttentionScaling",
            display_name="MemGuard Attention Scaling",
            category=CATEGORY,
            description="Multiplies what cross-attention gives to the beginning of the prompt, and leaves the padding "
            "behind its words out, where memorized prompts rest (Ren et al., ECCV 2024). SD1, SD2, SDXL.",
            inputs=[*inputs_of(AttentionScaling, "bos_scale", "mask_padding", "mask_eos"), *mitigation_inputs()],
            outputs=mitigation_outputs(),
        )

    @classmethod
    def execute(cls, model=None, clip=None, mitigation=(), **settings):
        return mitigated(AttentionScaling(**settings), model, clip, mitigation)


NODES = [MemGuardAttentionScaling]
