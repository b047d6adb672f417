"""The classes of comfy/supported_models.py that the matrix builds, tiny: settings, latent and conditioning of each."""

from __future__ import annotations

W = 64
PICTURE, FRAME, VIDEO = (16, 8, 8), (16, 1, 8, 8), (16, 3, 8, 8)

FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "patch_size": 2, "vec_in_dim": 768,
    "context_in_dim": W, "hidden_size": 96, "mlp_ratio": 4.0, "num_heads": 4, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [4, 10, 10], "theta": 10000, "qkv_bias": True, "guidance_embed": True, "txt_ids_dims": [],
}  # fmt: skip
FLUX2 = FLUX | {
    "image_model": "flux2", "axes_dim": [6, 6, 6, 6], "mlp_ratio": 3.0, "theta": 2000, "in_channels": 128,
    "out_channels": 128, "patch_size": 1, "global_modulation": True, "mlp_silu_act": True, "qkv_bias": False,
    "ops_bias": False, "default_ref_method": "index", "ref_index_scale": 10.0, "txt_ids_dims": [3], "vec_in_dim": None,
}  # fmt: skip
CHROMA = {k: v for k, v in FLUX.items() if k != "guidance_embed"} | {
    "image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64, "out_dim": 96, "hidden_dim": 64,
    "n_layers": 2, "vec_in_dim": None,
}  # fmt: skip
WAN = {
    "image_model": "wan2.1", "dim": 96, "ffn_dim": 64, "freq_dim": 32, "text_dim": W, "num_heads": 4, "num_layers": 2,
    "in_dim": 16, "out_dim": 16,
}  # fmt: skip
WANS = {
    "WAN21_CausalAR_T2V": {"model_type": "t2v"},
    "WAN21_FlowRVS": {"model_type": "t2v"},
    "WAN21_FunControl2V": {"model_type": "i2v", "in_dim": 48},
    "WAN21_Camera": {"model_type": "camera", "in_dim": 32},
    "WAN22_Camera": {"model_type": "camera_2.2", "in_dim": 36},
    "WAN21_Vace": {"model_type": "vace", "vace_layers": 1, "vace_in_dim": 96},
    "WAN21_HuMo": {"model_type": "humo", "in_dim": 36},
    "WAN22_S2V": {"model_type": "s2v", "audio_inject_layers": [0], "audio_dim": 32},
    "WAN22_Animate": {"model_type": "animate", "in_dim": 36, "motion_encoder_dim": 512},
    "WAN_Animate2": {"model_type": "animate2", "in_dim": 36},
    "WAN21_SCAIL": {"model_type": "scail", "in_dim": 20},
    "WAN21_SCAIL2": {"model_type": "scail2", "in_dim": 20},
}
HUNYUAN_VIDEO = {
    "image_model": "hunyuan_video", "in_channels": 16, "patch_size": [1, 2, 2], "out_channels": 16, "vec_in_dim": 768,
    "context_in_dim": W, "hidden_size": 96, "mlp_ratio": 4.0, "num_heads": 4, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [4, 10, 10], "theta": 256, "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
}  # fmt: skip
HUNYUAN_IMAGE = HUNYUAN_VIDEO | {
    "vec_in_dim": None, "patch_size": [2, 2], "axes_dim": [12, 12], "in_channels": 64, "out_channels": 64,
}  # fmt: skip
COSMOS = {
    "image_model": "cosmos_predict2", "max_img_h": 16, "max_img_w": 16, "max_frames": 16, "in_channels": 16,
    "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "model_channels": 96, "concat_padding_mask": True,
    "crossattn_emb_channels": W, "pos_emb_cls": "rope3d", "pos_emb_learnable": False, "pos_emb_interpolation": "crop",
    "min_fps": 1, "max_fps": 30, "use_adaln_lora": True, "adaln_lora_dim": 32, "num_blocks": 1, "num_heads": 2,
}  # fmt: skip
LUMINA = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "cap_feat_dim": W, "n_layers": 1,
    "n_refiner_layers": 1, "qk_norm": True, "n_heads": 4, "n_kv_heads": 4, "axes_dims": [8, 8, 8],
    "axes_lens": [300, 64, 64], "rope_theta": 10000.0, "ffn_dim_multiplier": 4.0, "multiple_of": 16,
}  # fmt: skip
PIXART = {
    "image_model": "pixart_sigma", "input_size": 64, "hidden_size": 64, "depth": 1, "num_heads": 4,
    "caption_channels": W, "micro_condition": False, "pe_interpolation": 1, "model_max_length": 300,
}  # fmt: skip
HYDIT = {
    "image_model": "hydit", "depth": 2, "hidden_size": 64, "num_heads": 4, "text_states_dim": W,
    "text_states_dim_t5": W, "patch_size": 2,
}  # fmt: skip
OMNIGEN = {
    "image_model": "omnigen2", "axes_dim_rope": [8, 8, 8], "axes_lens": [300, 64, 64], "hidden_size": 96,
    "in_channels": 16, "multiple_of": 16, "num_attention_heads": 4, "num_kv_heads": 2, "num_layers": 1,
    "num_refiner_layers": 1, "text_feat_dim": W, "timestep_scale": 1000.0,
}  # fmt: skip
SMALL = {"num_layers": 1, "attention_head_dim": 16, "num_attention_heads": 4}
QWEN = SMALL | {"image_model": "qwen_image", "in_channels": 64, "joint_attention_dim": W, "axes_dims_rope": (4, 6, 6)}
MAGE = {"image_model": "mage_flow", "joint_attention_dim": W, "axes_dims_rope": (4, 6, 6)}
LENS = {
    "image_model": "lens", "in_channels": 128, "out_channels": 32, "enc_hidden_dim": W, "axes_dims_rope": (4, 6, 6),
    "multi_layer_encoder_feature": False,
}  # fmt: skip
COG = {
    "image_model": "cogvideox", "attention_head_dim": 64, "in_channels": 16, "out_channels": 16, "time_embed_dim": 32,
    "text_embed_dim": W, "use_rotary_positional_embeddings": True, "max_text_seq_length": 77,
}  # fmt: skip
ERNIE = {
    "image_model": "ernie", "hidden_size": 96, "num_attention_heads": 4, "num_layers": 1, "ffn_hidden_size": 64,
    "text_in_dim": W, "rope_axes_dim": (8, 8, 8),
}  # fmt: skip
KANDINSKY = {
    "image_model": "kandinsky5", "in_text_dim": W, "in_text_dim2": 768, "time_dim": 32, "model_dim": 96, "ff_dim": 64,
    "visual_embed_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 1, "axes_dims": (8, 8, 8),
}  # fmt: skip
CASCADE = {
    "c_hidden": [64, 64], "c_cond": W, "nhead": [4, 4], "blocks": [[1, 1], [1, 1]], "block_repeat": [[1, 1], [1, 1]],
    "c_clip_text": W, "stable_cascade_stage": "c",
}  # fmt: skip
AURA = {
    "dim": 64, "n_layers": 2, "n_double_layers": 1, "n_heads": 4, "cond_seq_dim": 2048, "global_conddim": 64,
    "max_seq": 64,
}  # fmt: skip
KREA = {
    "image_model": "krea2", "features": 64, "tdim": 32, "txtdim": W, "heads": 4, "kvheads": 2, "layers": 1,
    "txtlayers": 1, "txtheads": 4, "txtkvheads": 2,
}  # fmt: skip


def table(tiny, torch) -> dict[str, tuple]:
    """Return class -> settings, latent of one picture, width of text and of the pooled vector, more conditioning."""
    ones = {"attention_mask": torch.ones(1, 77)}
    t5 = {"conditioning_mt5xl": torch.randn(1, 256, W), "attention_mask_mt5xl": torch.ones(1, 256)}
    wide = {"dim": 256, "axes_dims": [16, 24, 24], "z_image_modulation": True, "time_scale": 1000.0}
    unet, linear = (4, 8, 8), {"use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 16}
    concat = {"concat_latent_image": torch.zeros(1, 4, 8, 8)}
    adm = {"num_classes": "sequential"}
    xl = {name: (tiny.SDXL, unet, 32, 1280, {}) for name in ("SSD1B", "Segmind_Vega", "KOALA_700M", "KOALA_1B")}
    wans = {name: (WAN | settings, VIDEO, W, None, {}) for name, settings in WANS.items()}
    return {
        **xl,
        **wans,
        "SD21UnclipL": (tiny.SD15 | linear | adm | {"adm_in_channels": 1536}, unet, 32, None, {}),
        "SD21UnclipH": (tiny.SD15 | linear | adm | {"adm_in_channels": 2048}, unet, 32, None, {}),
        "LotusD": (tiny.SD15 | linear | adm | {"adm_in_channels": 4}, unet, 32, None, {}),
        "SD15_instructpix2pix": (tiny.SD15 | {"in_channels": 8}, unet, 32, None, concat),
        "SDXL_instructpix2pix": (tiny.SDXL | {"in_channels": 8}, unet, 32, 1280, concat),
        "FluxInpaint": (FLUX | {"in_channels": 96}, PICTURE, W, 768, {}),
        "HunyuanVideoI2V": (HUNYUAN_VIDEO | {"in_channels": 33}, VIDEO, W, 768, {}),
        "HunyuanVideoSkyreelsI2V": (HUNYUAN_VIDEO | {"in_channels": 32}, VIDEO, W, 768, {}),
        "HunyuanImage21": (HUNYUAN_IMAGE, (64, 8, 8), W, None, {}),
        "CosmosI2VPredict2": (COSMOS | {"in_channels": 17}, VIDEO, W, None, {}),
        "Kandinsky5": (KANDINSKY | {"visual_embed_dim": 132}, VIDEO, W, 768, {}),
        "MageFlow": (SMALL | MAGE, (128, 4, 4), W, None, {}),
        "Lens": (SMALL | LENS, (128, 4, 4), W, None, {}),
        "CogVideoX_T2V": (SMALL | COG, VIDEO, W, None, {}),
        "SD15": (tiny.SD15, unet, 32, None, {}),
        "SD20": (tiny.SD15 | linear, unet, 32, None, {}),
        "SDXL": (tiny.SDXL, unet, 32, 1280, {}),
        "SDXLRefiner": (tiny.SDXL | {"adm_in_channels": 2560}, unet, 32, 1280, {}),
        "SD3": (tiny.SD3, PICTURE, 48, 2048, {}),
        "Stable_Cascade_C": (CASCADE, PICTURE, W, 1280, {}),
        "AuraFlow": (AURA, unet, 2048, None, {}),
        "PixArtSigma": (PIXART, (4, 64, 64), W, None, {}),
        "HunyuanDiT": (HYDIT, unet, W, None, ones | t5),
        "Flux": (FLUX, PICTURE, W, 768, {}),
        "FluxSchnell": (FLUX | {"guidance_embed": False}, PICTURE, W, 768, {}),
        "Flux2": (FLUX2, (128, 4, 4), W, None, {}),
        "LongCatImage": (FLUX | {"guidance_embed": False, "vec_in_dim": None}, PICTURE, W, None, {}),
        "Chroma": (CHROMA, PICTURE, W, None, {}),
        "Lumina2": (LUMINA, PICTURE, W, None, ones),
        "ZImage": (LUMINA | wide | {"pad_tokens_multiple": 32}, PICTURE, W, None, {}),
        "QwenImage": (QWEN, FRAME, W, None, {}),
        "Omnigen2": (OMNIGEN, PICTURE, W, None, {"attention_mask": torch.ones(1, 77).long()}),
        "ErnieImage": (ERNIE, (128, 4, 4), W, None, {}),
        "Krea2": (KREA, PICTURE, W, None, {}),
        "CosmosT2IPredict2": (COSMOS, FRAME, W, None, {}),
        "Anima": (COSMOS | {"image_model": "anima", "crossattn_emb_channels": 1024}, FRAME, 1024, None, {}),
        "Kandinsky5Image": (KANDINSKY, FRAME, W, 768, {}),
        "HunyuanVideo": (HUNYUAN_VIDEO, VIDEO, W, 768, {}),
        "WAN21_T2V": (WAN | {"model_type": "t2v"}, VIDEO, W, None, {}),
        "WAN21_I2V": (WAN | {"model_type": "i2v", "in_dim": 36}, VIDEO, W, None, {}),
    }
