"""MemGuard Adjust Noise: sampling starts from noise that leads out of the copy (Han et al., NeurIPS 2025)."""

from comfy_api.latest import io

from ..memguard.hosts.comfyui.preparing import adjusted
from ..memguard.mitigations.noise_adjustment import NoiseAdjustment
from ..memguard.setting import of
from .types import CATEGORY, MitigationType, before_input, input_of, inputs_of, seed_input


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
                seed_input("noise_seed", "Seed of the noise that is adjusted."),
                *inputs_of(NoiseAdjustment, "method", "rounds"),
                input_of("iterations", of(NoiseAdjustment)["iterations"], "0: none are given."),
                input_of("target", of(NoiseAdjustment)["target"], "0: none is given."),
                input_of(
                    "until",
                    of(NoiseAdjustment)["until"],
                    "At MemGuard only: the noise output cannot carry this; add MemGuard Guidance Delay.",
                ),
                *inputs_of(NoiseAdjustment, "strength"),
                io.Model.Input("model", optional=True, tooltip="The sampler's. Not connected: only for MemGuard."),
                io.Conditioning.Input("positive", optional=True, tooltip="The sampler's prompt."),
                io.Conditioning.Input("negative", optional=True, tooltip="The sampler's negative prompt."),
                io.Latent.Input("latent", optional=True, tooltip="The sampler's latent, an empty one."),
                before_input(),
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
        iterations,
        target,
        model=None,
        positive=None,
        negative=None,
        latent=None,
        mitigation=(),
        **settings,
    ):
        own = NoiseAdjustment(iterations=iterations or None, target=target or None, **settings)
        if model is None:
            return io.NodeOutput(None, (*mitigation, own))
        for name, given in (("positive", positive), ("negative", negative), ("latent", latent)):
            if given is None:
                raise ValueError(f"{name} is not connected; with a model, connect what the sampler gets")
        noise, said = adjusted(own, model, positive, negative, latent, noise_seed)
        return io.NodeOutput(noise, (*mitigation, own), ui={"text": [said]})


NODES = [MemGuardAdjustNoise]
