"""MemGuard Optimize Prompt: the encoded prompt is moved until it no longer pulls (Wen et al., ICLR 2024)."""

from comfy_api.latest import io

from ..memguard.hosts.comfyui.preparing import optimized
from ..memguard.mitigations.prompt_optimization import PromptOptimization
from ..memguard.setting import of
from .types import CATEGORY, MitigationType, before_input, input_of, inputs_of, seed_input


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
                seed_input("seed", "The sampler's seed: the prompt is optimised for the noise that it starts from."),
                *inputs_of(PromptOptimization, "lr", "iterations"),
                input_of("target", of(PromptOptimization)["target"], "0: none; without a profile there is none."),
                *inputs_of(PromptOptimization, "pooled", "strength"),
                io.Model.Input("model", optional=True, tooltip="The sampler's. Not connected: only for MemGuard."),
                io.Conditioning.Input("positive", optional=True, tooltip="The prompt, of one part."),
                io.Conditioning.Input("negative", optional=True, tooltip="The sampler's negative prompt."),
                io.Latent.Input("latent", optional=True, tooltip="The sampler's latent; all its images count."),
                io.Sigmas.Input(
                    "sigmas", optional=True, tooltip="The sampler's, where it does not start at the largest noise."
                ),
                before_input(),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning", tooltip="The optimised prompt, for positive. Empty without a model."
                ),
                MitigationType.Output(
                    display_name="mitigation", tooltip="For MemGuard's mitigation input, policy mitigate."
                ),
                io.Float.Output(display_name="score", tooltip="Of the optimised prompt. -1 without a model."),
            ],
        )

    @classmethod
    def execute(
        cls, seed, target, model=None, positive=None, negative=None, latent=None, sigmas=None, mitigation=(), **settings
    ):
        own = PromptOptimization(target=target or None, **settings)
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
