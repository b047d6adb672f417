"""MemGuard Adjust Noise: sampling starts from noise that leads out of the copy (Han et al., NeurIPS 2025)."""

from comfy_api.latest import io

from ..memguard.hosts.comfyui.preparing import adjusted
from ..memguard.mitigations.noise_adjustment import NoiseAdjustment
from .types import CATEGORY, SEED_MAX, MitigationType, strength_input


class MemGuardAdjustNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_AdjustNoise",
            display_name="MemGuard Adjust Noise",
            category=CATEGORY,
            description="Moves the starting noise out of the place that leads to the copy (Han et al., NeurIPS 2025). "
            "The noise is for SamplerCustomAdvanced; the seed stays, the picture becomes another one.",
            inputs=[
                io.Int.Input(
                    "noise_seed",
                    default=0,
                    min=0,
                    max=SEED_MAX,
                    control_after_generate=True,
                    tooltip="Seed of the noise that is adjusted.",
                ),
                io.Combo.Input(
                    "method",
                    options=["batch", "sample", "sail"],
                    default="batch",
                    tooltip="batch: a few predictions, no gradients. sample: gradients, until the score is low. sail: "
                    "gradients, 10 steps (Jeon et al., ICML 2025).",
                ),
                io.Int.Input("rounds", default=2, min=0, max=20, tooltip="Of method batch: how often the noise moves."),
                io.Int.Input(
                    "iterations", default=0, min=0, max=5000, tooltip="Of sample and sail, at most. 0: the paper's."
                ),
                io.Float.Input(
                    "target",
                    default=0.0,
                    min=0.0,
                    max=1000.0,
                    step=0.01,
                    tooltip="Of sample and sail: loss at which to stop. 0: the paper's.",
                ),
                io.Float.Input(
                    "until",
                    default=900.0,
                    min=0.0,
                    max=1000.0,
                    step=10.0,
                    tooltip="Of method batch at MemGuard: timestep of 1000 down to which there is no guidance. The "
                    "noise output cannot carry this; add MemGuard Guidance Delay.",
                ),
                strength_input(),
                io.Model.Input("model", optional=True, tooltip="The sampler's. Not connected: only for MemGuard."),
                io.Conditioning.Input("positive", optional=True, tooltip="The sampler's prompt."),
                io.Conditioning.Input("negative", optional=True, tooltip="The sampler's negative prompt."),
                io.Latent.Input("latent", optional=True, tooltip="The sampler's latent, an empty one."),
                MitigationType.Input(
                    "mitigation",
                    optional=True,
                    tooltip="Another mitigation, which MemGuard tries before this one; up to three in a row.",
                ),
            ],
            outputs=[
                io.Noise.Output(display_name="noise", tooltip="For SamplerCustomAdvanced. Empty without a model."),
                MitigationType.Output(
                    display_name="mitigation", tooltip="For MemGuard's mitigation input, policy mitigate."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        noise_seed,
        method,
        rounds,
        iterations,
        target,
        until,
        strength,
        model=None,
        positive=None,
        negative=None,
        latent=None,
        mitigation=(),
    ):
        settings = {"rounds": rounds, "iterations": iterations or None, "target": target or None, "until": until}
        own = NoiseAdjustment(method, **settings, strength=strength)
        if model is None:
            return io.NodeOutput(None, (*mitigation, own))
        for name, given in (("positive", positive), ("negative", negative), ("latent", latent)):
            if given is None:
                raise ValueError(f"{name} is not connected; with a model, connect what the sampler gets")
        noise, said = adjusted(own, model, positive, negative, latent, noise_seed)
        return io.NodeOutput(noise, (*mitigation, own), ui={"text": [said]})


NODES = [MemGuardAdjustNoise]
