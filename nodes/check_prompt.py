"""MemGuard Check Prompt: the score of the first step, before any sampling."""

from comfy_api.latest import io

from ..memguard import Guard
from ..memguard.hosts.comfyui.preflight import check
from ..memguard.table import GUARD
from .types import CATEGORY, SEED_MAX, input_of, output_of, policy_input, profile_input, report_outputs, seed_input


class MemGuardCheckPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_CheckPrompt",
            display_name="MemGuard Check Prompt",
            category=CATEGORY,
            description="Scores a prompt before any sampling, with the noise that the sampler would start from: one "
            "evaluation of both prompts per seed. The first seed's score is the sampler's own.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the sampler gets."),
                io.Conditioning.Input("positive", tooltip="The prompt to check."),
                io.Conditioning.Input("negative", tooltip="What it is compared with: the sampler's negative prompt."),
                io.Latent.Input("latent", tooltip="The latent that the sampler gets; it passes through unchanged."),
                seed_input("seed", "The sampler's seed. Further seeds follow it."),
                io.Int.Input(
                    "seeds", default=1, min=1, max=64, tooltip="How many seeds to score; the score is their mean."
                ),
                policy_input(),
                input_of("sensitivity", GUARD["sensitivity"]),
                profile_input(),
                io.Sigmas.Input(
                    "sigmas",
                    optional=True,
                    tooltip="The sampler's sigmas, for runs that start from a picture. Not connected: pure noise.",
                ),
            ],
            outputs=report_outputs(),
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, positive, negative, latent, seed, seeds, policy, sensitivity, profile=None, sigmas=None):
        guard = Guard(policy=policy, sensitivity=sensitivity, profile=profile)
        drawn = [(seed + i) % (SEED_MAX + 1) for i in range(seeds)]
        return output_of(check(guard, model, positive, negative, latent, drawn, sigmas), latent)


NODES = [MemGuardCheckPrompt]
