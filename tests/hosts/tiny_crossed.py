"""Tiny random transformers whose pictures attend to the prompt in layers of their own; see ``tiny``."""

from __future__ import annotations

import diffusers
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from transformers import Gemma2Config, Gemma2Model

from tests.hosts import tiny

TOKENS = {"max_sequence_length": 16}
# what each pipeline is called with, beside the prompt
CALLS = {
    "pixart": TOKENS | {"height": 16, "width": 16, "clean_caption": False},
    "sana": TOKENS | {"height": 32, "width": 32, "complex_human_instruction": None, "clean_caption": False},
    "ltx": TOKENS | {"height": 32, "width": 32, "num_frames": 9},
    "wan": TOKENS | {"height": 16, "width": 16, "num_frames": 5},
    "latte": {"height": 16, "width": 16, "video_length": 2, "clean_caption": False},
    "allegro": TOKENS | {"height": 16, "width": 16, "num_frames": 8, "clean_caption": False},
}


def pixart():
    return tiny.pixart()


def _texts() -> dict:
    return {"text_encoder": tiny.t5(), "tokenizer": tiny.words_tokenizer()}


def wan():
    """Queries and keys are normed, the prompts come in two calls, and nothing masks the padding."""
    torch.manual_seed(0)
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=tiny.WIDTH,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    small = {"base_dim": 3, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    vae = diffusers.AutoencoderKLWan(temperal_downsample=[False, True, True], **small)
    plan = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return tiny.quiet(diffusers.WanPipeline(transformer=model, vae=vae, scheduler=plan, **_texts()))


def ltx():
    """Queries and keys are normed, and a mask is added."""
    torch.manual_seed(0)
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=2,
        caption_channels=tiny.WIDTH,
    )
    five, four = 5 * (1,), 4 * (8,)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=four,
        decoder_block_out_channels=four,
        layers_per_block=five,
        decoder_layers_per_block=five,
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=5 * (False,),
        upsample_residual=4 * (False,),
        upsample_factor=4 * (1,),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
    )
    plan = FlowMatchEulerDiscreteScheduler()
    return tiny.quiet(diffusers.LTXPipeline(transformer=model, vae=vae, scheduler=plan, **_texts()))


def sana():
    """Linear self-attention, cross-attention with a mask, of fewer heads."""
    torch.manual_seed(0)
    model = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=4,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=tiny.WIDTH,
        sample_size=32,
    )
    kinds, widths = ("ResBlock", "ResBlock"), (8, 8)
    vae = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=kinds,
        decoder_block_types=kinds,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )
    words = tiny.words_tokenizer()
    small = {"hidden_size": tiny.WIDTH, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Gemma2Config(num_hidden_layers=1, head_dim=16, vocab_size=16, **small)
    parts = {"text_encoder": Gemma2Model(config), "tokenizer": words}
    plan = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.SanaPipeline(transformer=model, vae=vae, scheduler=plan, **parts)
    pipe.image_processor.classify_height_width_bin = lambda height, width, ratios: (height, width)  # any size
    return tiny.quiet(pipe)


def latte():
    """Each frame attends by itself: its rows are the prompt's, repeated."""
    torch.manual_seed(0)
    model = diffusers.LatteTransformer3DModel(
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=tiny.WIDTH,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=2,
    )
    parts = {"transformer": model, "vae": tiny.vae(), "scheduler": tiny.scheduler(DDIMScheduler)}
    return tiny.quiet(diffusers.LattePipeline(**parts, **_texts()))


def allegro():
    """Both prompts in one call, each with a mask; places of the picture are rotated, in its self-attention alone."""
    torch.manual_seed(0)
    model = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=tiny.WIDTH,
    )
    down, up = 4 * ("AllegroDownBlock3D",), 4 * ("AllegroUpBlock3D",)
    small = {"block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2}
    vae = diffusers.AutoencoderKLAllegro(down_block_types=down, up_block_types=up, **small)
    vae.enable_tiling()
    return tiny.quiet(diffusers.AllegroPipeline(transformer=model, vae=vae, scheduler=tiny.scheduler(), **_texts()))
