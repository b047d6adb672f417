"""MemGuard Guidance Delay: guidance begins later (Jain et al., CVPR 2025)."""

from comfy_api.latest import io

from ..memguard.mitigations import get
from .types import CATEGORY, mitigated, mitigation_inputs, mitigation_outputs


class MemGuardGuidanceDelay(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_GuidanceDelay",
            display_name="MemGuard Guidance Delay",
            category=CATEGORY,
            description="Guides later: the first steps go without the prompt, so that they do not lead into the copy "
            "(Jain et al., CVPR 2025). All models that are sampled with a negative prompt.",
            inputs=[
                io.Combo.Input(
                    "transition",
                    options=["static", "dynamic"],
                    default="static",
                    tooltip="static: guidance begins at the timestep below. dynamic: behind the first local minimum "
                    "of the noise gap.",
                ),
                io.Float.Input(
                    "until",
                    default=500.0,
                    min=0.0,
                    max=1000.0,
                    step=10.0,
                    tooltip="Timestep of 1000, counting down, at which static guidance begins.",
                ),
                io.Float.Input(
                    "before",
                    default=0.0,
                    min=-30.0,
                    max=30.0,
                    step=0.5,
                    tooltip="cfg until then: 0 is without the prompt, below 0 away from it.",
                ),
                *mitigation_inputs(clip=False),
            ],
            outputs=mitigation_outputs(),
        )

    @classmethod
    def execute(cls, transition, until, before, strength, model=None, mitigation=()):
        settings = {"transition": transition, "until": until, "before": before, "strength": strength}
        return mitigated(get("guidance_delay", **settings), model, None, mitigation)


NODES = [MemGuardGuidanceDelay]
