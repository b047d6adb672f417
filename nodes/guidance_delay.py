"""MemGuard Guidance Delay: guidance begins later (Jain et al., CVPR 2025)."""

from comfy_api.latest import io

from ..memguard.mitigations.guidance_delay import GuidanceDelay
from .types import CATEGORY, inputs_of, mitigated, mitigation_inputs, mitigation_outputs


class MemGuardGuidanceDelay(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_GuidanceDelay",
            display_name="MemGuard Guidance Delay",
            category=CATEGORY,
            description="Guides later: the first steps go without the prompt, so that they do not lead into the copy "
            "(Jain et al., CVPR 2025). All models that are sampled with a negative prompt.",
            inputs=[*inputs_of(GuidanceDelay, "transition", "until", "before"), *mitigation_inputs(clip=False)],
            outputs=mitigation_outputs(),
        )

    @classmethod
    def execute(cls, model=None, mitigation=(), **settings):
        return mitigated(GuidanceDelay(**settings), model, None, mitigation)


NODES = [MemGuardGuidanceDelay]
