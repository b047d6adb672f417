"""Real ComfyUI models of 1-2 M random parameters, real conditionings, and ComfyUI's own sampling on them."""

import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch

CPU = torch.device("cpu")
WIDTH = {"sd15": 32, "vpred": 32, "sdxl": 32, "sd3": 48, "flux": 48}  # of a prompt's vectors
POOLED = {"sdxl": 1280, "sd3": 2048, "flux": 768}
CHANNELS = {"sd3": 16, "flux": 16}
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "use_spatial_transformer": True,
    "context_dim": 32,
    "use_temporal_attention": False,
    "legacy": False,
    "dtype": torch.float32,
}
SD15 = UNET | {
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "num_heads": 4,
    "num_head_channels": -1,
}
SDXL = UNET | {
    "transformer_depth": [0, 2],
    "transformer_depth_output": [0, 0, 2, 2],
    "transformer_depth_middle": 2,
    "use_linear_in_transformer": True,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "num_heads": -1,
    "num_head_channels": 16,
}
SD3 = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 2,
    "input_size": None,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128}},
    "num_patches": 1024,
    "pos_embed_max_size": 32,
    "qk_norm": "rms",
    "pos_embed_scaling_factor": None,
    "x_block_self_attn_layers": [],
    "dtype": torch.float32,
}
FLUX = {
    "image_model": "flux",
    "guidance_embed": True,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 48,
    "hidden_size": 96,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 10, 10],
    "txt_ids_dims": [],
    "theta": 10000,
    "qkv_bias": True,
    "dtype": torch.float32,
}


def build(kind: str, seed: int = 0):
    """Return a ModelPatcher of one kind: sd15, vpred, sdxl, sd3 or flux."""
    types = comfy.model_base.ModelType
    if kind in ("sd15", "vpred"):
        config = comfy.supported_models.SD15(dict(SD15))
        config.unet_config["num_heads"] = 4
        network = comfy.model_base.BaseModel(config, types.EPS if kind == "sd15" else types.V_PREDICTION, device="cpu")
    elif kind == "sdxl":
        config = comfy.supported_models.SDXL(dict(SDXL))
        config.unet_config["num_head_channels"] = 16
        network = comfy.model_base.SDXL(config, types.EPS, device="cpu")
    elif kind == "sd3":
        network = comfy.model_base.SD3(comfy.supported_models.SD3(dict(SD3)), device="cpu")
    else:
        network = comfy.model_base.Flux(comfy.supported_models.Flux(_known_to(FLUX)), device="cpu")
    _fill(network, seed)
    return comfy.model_patcher.ModelPatcher(network, CPU, CPU)


def _known_to(config: dict) -> dict:
    """Return a Flux configuration without the keys that this ComfyUI's Flux does not know."""
    from comfy.ldm.flux.model import FluxParams

    outside = {"image_model", "dtype"}
    return {k: v for k, v in config.items() if k in outside or k in FluxParams.__dataclass_fields__}


def _fill(network, seed: int) -> None:
    """Fill a network with random weights that give it an opinion on its prompt."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        weight.requires_grad_(False)
        drawn = torch.randn(weight.shape, generator=generator)
        if weight.ndim > 1:
            weight.copy_(drawn * 1.5 / weight[0].numel() ** 0.5)
        elif name.endswith("scale") or ("norm" in name and name.endswith("weight")):
            weight.fill_(1)
        else:
            weight.copy_(drawn * 0.02)
    for name, buffer in network.named_buffers():
        if name.endswith("pos_embed"):  # SD3 leaves it to the checkpoint
            buffer.copy_(torch.randn(buffer.shape, generator=generator))
    network.eval()


def prompt(kind: str = "sd15", seed: int = 1, tokens: int = 7, **extra):
    """Return a CONDITIONING of random vectors."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn((1, tokens, WIDTH[kind]), generator=generator)
    if kind in POOLED:
        extra["pooled_output"] = torch.randn((1, POOLED[kind]), generator=generator)
    return [[vectors, extra]]


def latent(kind: str = "sd15", batch: int = 1, side: int = 8):
    """Return the samples of an empty LATENT."""
    return torch.zeros((batch, CHANNELS.get(kind, 4), side, side))


def sample(model, positive, negative, image, cfg=7.5, sampler="euler", scheduler="normal", steps=3, seed=5, **more):
    """Return the latent that a KSampler node returns."""
    noise = comfy.sample.prepare_noise(image, seed)
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, scheduler, positive, negative, image, seed=seed, disable_pbar=True, **more
    )


def guide(guider, image, sampler="euler", scheduler="normal", steps=3, seed=5, sigmas=None):
    """Return the latent that a SamplerCustomAdvanced node returns."""
    if sigmas is None:
        sampling = guider.model_patcher.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
    noise = comfy.sample.prepare_noise(image, seed)
    return guider.sample(noise, image, comfy.samplers.sampler_object(sampler), sigmas, disable_pbar=True, seed=seed)


def predict(model, conditioning, x, sigma: float, role: str = "positive"):
    """Return the network's own prediction for one prompt: one bare call, no sampler and no guider."""
    network = model.model
    vectors, extra = conditioning[0]
    width, height = x.shape[-1] * 8, x.shape[-2] * 8
    made = network.extra_conds(
        cross_attn=vectors, noise=x, device=CPU, prompt_type=role, width=width, height=height, **extra
    )
    inputs = {name: value.process_cond(batch_size=len(x), area=None).cond for name, value in made.items()}
    denoised = network.apply_model(x, torch.full((len(x),), sigma), **inputs)
    return (x - denoised) / sigma


def gap(model, positive, negative, x, sigma: float):
    """Return the noise gap from two separate calls."""
    return predict(model, positive, x, sigma) - predict(model, negative, x, sigma, "negative")


def start(model, image, seed: int = 5):
    """Return the noisy latents that a sampler starts from, and their sigma, from the formulas."""
    sampling = model.model.model_sampling
    sigma = float(sampling.sigma_max)
    noise = torch.randn(image.shape, generator=torch.manual_seed(seed))
    if isinstance(sampling, comfy.model_sampling.CONST):
        return sigma * noise + (1 - sigma) * image, sigma
    return noise * (1 + sigma**2) ** 0.5 + image, sigma


def norms(values) -> list[float]:
    """Return the L2 norm per image."""
    return values.flatten(1).norm(dim=1).tolist()
