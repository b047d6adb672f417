"""Tiny random models of ComfyUI's own classes whose latents are no pictures: one frame, videos, sound, both packed."""

import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import node_helpers
import pytest
import torch

from memguard_pack.memguard.hosts.comfyui import graph
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import Clip

WIDTH = 64
PROMPT = "a red fox"
MASK = {"attention_mask": torch.ones(1, 77, dtype=torch.long)}
QWEN = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 6, 6),
}
ANIMA = {
    "image_model": "anima",
    "max_img_h": 16,
    "max_img_w": 16,
    "max_frames": 16,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "model_channels": 96,
    "concat_padding_mask": True,
    "crossattn_emb_channels": 1024,
    "pos_emb_cls": "rope3d",
    "pos_emb_learnable": False,
    "pos_emb_interpolation": "crop",
    "min_fps": 1,
    "max_fps": 30,
    "use_adaln_lora": True,
    "adaln_lora_dim": 32,
    "num_blocks": 1,
    "num_heads": 2,
}
WAN = {
    "image_model": "wan2.1",
    "model_type": "t2v",
    "dim": 96,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": WIDTH,
    "num_heads": 4,
    "num_layers": 2,
    "in_dim": 16,
    "out_dim": 16,
}
HUNYUAN = {
    "image_model": "hunyuan_video",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 768,
    "context_in_dim": WIDTH,
    "hidden_size": 96,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [4, 10, 10],
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
LTXV = {
    "image_model": "ltxv",
    "num_layers": 1,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "cross_attention_dim": WIDTH,
    "caption_channels": WIDTH,
    "positional_embedding_max_pos": [20, 16, 16],
}
LTXAV = LTXV | {
    "image_model": "ltxav",
    "audio_attention_head_dim": 32,
    "audio_num_attention_heads": 2,
    "audio_cross_attention_dim": WIDTH,
    "connector_attention_head_dim": 32,
    "connector_num_attention_heads": 2,
    "connector_num_layers": 1,
}
H3 = {
    "image_model": "minimax_h3",
    "hidden_size": 64,
    "num_layers": 1,
    "token_refiner_num_layers": 1,
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "ffn_hidden_size": 64,
    "text_dim": WIDTH,
    "time_embed_hidden_size": 64,
    "time_embed_dim": 32,
    "rope_inv_freq_len": 2,
}
STABLE_AUDIO = {
    "audio_model": "dit1.0",
    "io_channels": 64,
    "embed_dim": 768,
    "cond_token_dim": 768,
    "global_cond_dim": 1536,
    "depth": 1,
    "num_heads": 12,
    "project_cond_tokens": False,
}
# class -> its settings, shapes of the latents without the batch, width of an encoded prompt, more of a conditioning
ONE_FRAME = {
    "QwenImage": (QWEN, [(16, 1, 8, 8)], WIDTH, {}),
    "Anima": (ANIMA, [(16, 1, 8, 8)], 1024, {}),
}
VIDEOS = {
    "WAN21_T2V": (WAN, [(16, 3, 8, 6)], WIDTH, {}),
    "HunyuanVideo": (HUNYUAN, [(16, 3, 8, 6)], WIDTH, {}),
    "LTXV": (LTXV, [(128, 2, 4, 6)], WIDTH, MASK),
}
SOUND = {"StableAudio": (STABLE_AUDIO, [(64, 32)], 768, {})}
PACKED = {"LTXAV": (LTXAV, [(128, 2, 4, 6), (8, 4, 16)], 2 * WIDTH, MASK)}
READ_FIRST = {  # by a network before the first step
    "LTXAV": (LTXAV, [(128, 2, 4, 6), (8, 4, 16)], WIDTH, {}),
    "Anima": (ANIMA, [(16, 1, 8, 8)], 1024, {"t5xxl_ids": torch.arange(3, 8), "t5xxl_weights": torch.ones(5)}),
}
ONE_ROW = {"MiniMaxH3": (H3, [(24, 2, 4, 6), (32, 2, 4)], WIDTH, {})}


def build(name, kind, monkeypatch):
    """Return a tiny random model of a class of ComfyUI's, its CLIP, prompt, negative prompt and latent."""
    settings, shapes, width, more = kind
    monkeypatch.setattr(graph, "prompt_texts", lambda *_: [PROMPT])
    if not hasattr(comfy.supported_models, name):
        pytest.skip(f"this ComfyUI has no {name}")
    monkeypatch.setitem(tiny.WIDTH, name, width)
    if "vec_in_dim" in settings and settings["vec_in_dim"]:
        monkeypatch.setitem(tiny.POOLED, name, settings["vec_in_dim"])
    with torch.inference_mode():
        config = getattr(comfy.supported_models, name)({**_known(name, settings), "dtype": torch.float32})
        config.set_inference_dtype(torch.float32, None)
        config.optimizations = {}
        network = config.get_model(_state(name), "", "cpu")
        if kind is READ_FIRST.get(name) and not hasattr(network.diffusion_model, "preprocess_text_embeds"):
            pytest.skip(f"this ComfyUI's {name} reads its prompt within the network")
        tiny._fill(network, 0)
        for which, buffer in network.named_buffers():  # what is left to the checkpoint
            if which.endswith("inv_freq"):
                buffer.copy_(10000 ** -torch.linspace(0, 1, len(buffer)))
            elif which.endswith("adaln_t_table"):
                buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(0)))
        model = comfy.model_patcher.ModelPatcher(network, tiny.CPU, tiny.CPU)
        clip = Clip(name)
        texts = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (PROMPT, ""))
        positive, negative = (node_helpers.conditioning_set_values(text, more) for text in texts)
        image = comfy.sample.fix_empty_latent_channels(model, empty(shapes))
    return model, clip, positive, negative, image


def empty(shapes):
    """Return samples of an empty LATENT: of several shapes nested, as ComfyUI has a video and its sound."""
    parts = [torch.zeros((1, *shape)) for shape in shapes]
    if len(parts) == 1:
        return parts[0]
    from comfy.nested_tensor import NestedTensor

    return NestedTensor(parts)


def flat(samples):
    """Return the samples of a LATENT as one tensor, [B, n]."""
    parts = samples.unbind() if samples.is_nested else [samples]
    return torch.cat([part.flatten(1) for part in parts], 1)


def _known(name, settings):
    """Return settings without those that this ComfyUI's class does not know."""
    if name != "HunyuanVideo":
        return settings
    from comfy.ldm.hunyuan_video.model import HunyuanVideoParams

    known = HunyuanVideoParams.__dataclass_fields__
    return {key: value for key, value in settings.items() if key == "image_model" or key in known}


def _state(name):
    """Return what a class looks for in its checkpoint beside the network."""
    if name != "StableAudio":
        return {}
    from comfy.ldm.audio.embedders import NumberConditioner

    part = NumberConditioner(768, min_val=0, max_val=512).state_dict()
    names = ("seconds_start", "seconds_total")
    return {f"conditioner.conditioners.{n}.{k}": torch.randn(v.shape) for n in names for k, v in part.items()}


def first(model, positive, negative, image, seed=5, **more):
    """Return the first model call of a run as guidance gets it: noisy latents, sigma, denoised with and without.

    Tensors are the sampler's own: a video and its sound are [1, 1, n].
    """
    taken = []

    def take(args):
        taken.append((args["input"].clone(), args["sigma"], *(each.clone() for each in args["conds_out"])))
        return args["conds_out"]

    watched = model.clone()
    watched.set_model_sampler_pre_cfg_function(take)
    tiny.sample(watched, positive, negative, image, seed=seed, steps=2, scheduler="simple", **more)
    x, sigma, cond, uncond = taken[0]
    return x, float(sigma.flatten()[0]), cond, uncond
