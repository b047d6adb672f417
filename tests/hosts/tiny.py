"""Tiny random pipelines, built in process: real diffusers classes, real tokenizer, no download."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from memguard.testbed.tokens import write_tokenizer

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}
WIDTH = 32


@lru_cache(maxsize=1)
def same_noise(dtype: torch.dtype) -> bool:
    """Whether this torch draws the noise of float32 in another format too; not every version does."""
    drawn = [torch.randn(64, dtype=each, generator=torch.Generator().manual_seed(0)) for each in (dtype, torch.float32)]
    return torch.equal(drawn[0], drawn[1].to(dtype))


def tokenizer() -> CLIPTokenizer:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return CLIPTokenizer.from_pretrained(folder)


def scheduler(cls=DDIMScheduler, **settings):
    known = cls.from_config({})
    return cls(**{k: v for k, v in {**SCHEDULE, **settings}.items() if k in known.config})


def text_config(width: int = WIDTH) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        vocab_size=49408,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )


def vae(channels: int = 4, blocks: int = 2) -> AutoencoderKL:
    kinds = blocks * ("DownEncoderBlock2D",), blocks * ("UpDecoderBlock2D",)
    return AutoencoderKL(
        down_block_types=kinds[0],
        up_block_types=kinds[1],
        block_out_channels=blocks * (8,),
        norm_num_groups=2,
        latent_channels=channels,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def unet(**settings) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (16, 32),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": WIDTH,
            "attention_head_dim": 2,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            **settings,
        }
    )


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    for module in pipe.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    return pipe


def sd_parts(plan=None, seed: int = 0, **settings) -> dict:
    torch.manual_seed(seed)
    return {
        "vae": vae(),
        "text_encoder": CLIPTextModel(text_config()),
        "tokenizer": tokenizer(),
        "unet": unet(**settings),
        "scheduler": plan or scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def sd(plan=None, seed: int = 0, cls=StableDiffusionPipeline, **settings):
    return quiet(cls(**sd_parts(plan, seed, **settings)))


def sdxl(plan=None, zeros: bool = True):
    torch.manual_seed(0)
    model = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        cross_attention_dim=2 * WIDTH,
    )
    return quiet(
        StableDiffusionXLPipeline(
            vae=vae(),
            text_encoder=CLIPTextModel(text_config()),
            text_encoder_2=CLIPTextModelWithProjection(text_config()),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=model,
            scheduler=plan or scheduler(),
            force_zeros_for_empty_prompt=zeros,
            add_watermarker=False,
        )
    )


def sd3():
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
        pos_embed_max_size=16,
    )
    return quiet(
        StableDiffusion3Pipeline(
            transformer=model,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(),
            text_encoder=CLIPTextModelWithProjection(text_config()),
            tokenizer=tokenizer(),
            text_encoder_2=CLIPTextModelWithProjection(text_config()),
            tokenizer_2=tokenizer(),
            text_encoder_3=None,
            tokenizer_3=None,
        )
    )


def words_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", "<unk>", "a", "red", "fox", "blue", "house", "ugly", "cat", "on", "the", "roof"]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=16
    )


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=16, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2, pad_token_id=0)
    )


def flux(guidance_embeds: bool = False):
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 4, 8),
    )
    t5_encoder = t5()
    return quiet(
        FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(),
            text_encoder=CLIPTextModel(text_config()),
            tokenizer=tokenizer(),
            text_encoder_2=t5_encoder,
            tokenizer_2=words_tokenizer(),
            transformer=model,
        )
    )


def cogvideox():
    """Both prompts in one call, of frames [B, T, C, h, w]."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=WIDTH,
        num_layers=1,
        sample_width=4,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=16,
    )
    down, up = 4 * ("CogVideoXDownBlock3D",), 4 * ("CogVideoXUpBlock3D",)
    small = {"block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2}
    return quiet(
        diffusers.CogVideoXPipeline(
            transformer=model,
            vae=diffusers.AutoencoderKLCogVideoX(down_block_types=down, up_block_types=up, **small).eval(),
            scheduler=DDIMScheduler(**SCHEDULE),
            text_encoder=t5(),
            tokenizer=words_tokenizer(),
        )
    )


def bria():
    """Both prompts in one call, of latents that are packed as Flux packs them; needs a diffusers that has Bria."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.BriaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=None,
        axes_dims_rope=(0, 4, 4),
    )
    return quiet(
        diffusers.BriaPipeline(
            transformer=model,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=vae(blocks=1),
            text_encoder=t5(),
            tokenizer=words_tokenizer(),
        )
    )


def pixart():
    """Both prompts in one call, each with the mask of its own tokens."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.PixArtTransformer2DModel(
        sample_size=32,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=WIDTH,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    )
    parts = {"transformer": model, "scheduler": scheduler(), "vae": vae(), "text_encoder": t5()}
    pipe = diffusers.PixArtSigmaPipeline(tokenizer=words_tokenizer(), **parts)
    pipe.image_processor.classify_height_width_bin = lambda height, width, ratios: (height, width)  # any size
    return quiet(pipe)


def qwen():
    """The prompts in two calls, of latents that are packed; each token keeps the norm of the prompt's prediction."""
    import diffusers
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(8, 4, 4),
    )
    small = {"hidden_size": WIDTH, "intermediate_size": 16, "num_attention_heads": 2}
    rope = {"rope_scaling": {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}}
    config = Qwen2_5_VLConfig(
        text_config={**small, **rope, "num_hidden_layers": 1, "num_key_value_heads": 2, "vocab_size": 32},
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "depth": 1, "out_hidden_size": 16},
        vision_start_token_id=20,
        vision_end_token_id=21,
        vision_token_id=22,
    )
    pipe = diffusers.QwenImagePipeline(
        transformer=model,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True],
            latents_mean=4 * [0.0],
            latents_std=4 * [1.0],
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(config),
        tokenizer=words_tokenizer(),
    )
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}", 0
    return quiet(pipe)
