"""MemGuard Optimize Prompt: the encoded prompt is moved until it no longer pulls (Wen et al., ICLR 2024)."""

from comfy_api.latest import io

from ..memguard.hosts.comfyui.preparing import optimized
from ..memguard.mitigations.prompt_optimization import PromptOptimization
from .types import CATEGORY, SEED_MAX, MitigationType, strength_input

NO_TARGET = 0.0


class MemGuardOptimizePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_OptimizePrompt",
            display_name="MemGuard Optimize Prompt",
            category=CATEGORY,
            description="Moves the encoded prompt, step by step, until it no longer pulls the first prediction as a "
            "memorized prompt does (Wen et al., ICLR 2024). Before any sampling; sample with the same seed.",
            inputs=[
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=SEED_MAX,
                    control_after_generate=True,
                    tooltip="The sampler's seed: the prompt is optimised for the noise that it starts from.",
                ),
                io.Float.Input("lr", default=0.05, min=0.0001, max=1.0, step=0.001, tooltip="Learning rate of AdamW."),
                io.Int.Input("iterations", default=10, min=0, max=1000, tooltip="At most; a target ends it sooner."),
                io.Float.Input(
                    "target",
                    default=NO_TARGET,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="Score at which to stop, as MemGuard shows it. 0: none; for MemGuard, what ordinary "
                    "prompts score by its profile.",
                ),
                io.Boolean.Input(
                    "pooled", default=False, tooltip="Move the pooled vector too, beside the words (SDXL, SD3, Flux)."
                ),
                strength_input(),
                io.Model.Input("model", optional=True, tooltip="The sampler's. Not connected: only for MemGuard."),
                io.Conditioning.Input("positive", optional=True, tooltip="The prompt, of one part."),
                io.Conditioning.Input("negative", optional=True, tooltip="The sampler's negative prompt."),
                io.Latent.Input("latent", optional=True, tooltip="The sampler's latent; all its images count."),
                io.Sigmas.Input(
                    "sigmas", optional=True, tooltip="The sampler's, where it does not start at the largest noise."
                ),
                MitigationType.Input(
                    "mitigation",
                    optional=True,
                    tooltip="Another mitigation, which MemGuard tries before this one; up to three in a row.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="The optimised prompt, for positive. Empty without a model.",
                ),
                MitigationType.Output(
                    display_name="mitigation", tooltip="For MemGuard's mitigation input, policy mitigate."
                ),
                io.Float.Output(display_name="score", tooltip="Of the optimised prompt. -1 without a model."),
            ],
        )

    @classmethod
    def execute(
        cls,
        seed,
        lr,
        iterations,
        target,
        pooled,
        strength,
        model=None,
        positive=None,
        negative=None,
        latent=None,
        sigmas=None,
        mitigation=(),
    ):
        own = PromptOptimization(lr, iterations, target or None, pooled=pooled, strength=strength)
        if model is None:
            return io.NodeOutput(None, (*mitigation, own), -1.0)
        for name, given in (("positive", positive), ("negative", negative), ("latent", latent)):
            if given is None:
                raise ValueError(f"{name} is not connected; with a model, connect what the sampler gets")
        found, losses = optimized(own, model, positive, negative, latent, seed, sigmas)
        said = f"score {losses[0]:.3g} to {losses[-1]:.3g} in {len(losses) - 1} iterations"
        if target and losses[-1] > target:
            said += f"; the target {target:g} was not reached, give it more iterations"
        return io.NodeOutput(found, (*mitigation, own), losses[-1], ui={"text": [said]})


NODES = [MemGuardOptimizePrompt]
