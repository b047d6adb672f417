"""Every kind of model that ComfyUI knows, tiny and random, with and without MemGuard: what breaks or is said falsely.

Each class of comfy/supported_models.py in the table is built with about a million random parameters and sampled
plainly, watched, explained, at cfg 1, under reference "empty" and under every mitigation. A row is good where the
watched latents are equal to the plain ones, nothing raises, and no reason is the text of an error.

    COMFYUI_ROOT=/path/to/ComfyUI python benchmarks/matrix_comfyui.py [--only REGEX] [--out rows.jsonl]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
import tempfile
import types
import warnings
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPT, STEPS, W = "a red fox on the roof", 2, 64
PICTURE, FRAME, VIDEO = (16, 8, 8), (16, 1, 8, 8), (16, 3, 8, 8)
RAW = re.compile(r"Error|Traceback|size of tensor|out of bounds|c_crossattn|autograd|inside MemGuard|\bdim\b|NoneType")

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
HUNYUAN_VIDEO = {
    "image_model": "hunyuan_video", "in_channels": 16, "patch_size": [1, 2, 2], "out_channels": 16, "vec_in_dim": 768,
    "context_in_dim": W, "hidden_size": 96, "mlp_ratio": 4.0, "num_heads": 4, "depth": 1, "depth_single_blocks": 1,
    "axes_dim": [4, 10, 10], "theta": 256, "qkv_bias": True, "guidance_embed": True, "byt5": False, "meanflow": False,
    "use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False,
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
    return {
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


def enter() -> types.SimpleNamespace:
    """Return ComfyUI and MemGuard as the tests load them: the repository as a pack of ComfyUI's."""
    pack = types.ModuleType("memguard_pack")
    pack.__path__ = [str(ROOT)]
    sys.modules["memguard_pack"] = pack
    warnings.filterwarnings("ignore")
    from memguard_pack.tests.hosts.comfyui import host

    host.enter()
    import torch

    from memguard_pack.tests.hosts.comfyui import scene, tiny

    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.ERROR)
    return types.SimpleNamespace(torch=torch, scene=scene, tiny=tiny, rows=table(tiny, torch))


def trouble(call) -> list[str]:
    """Return what a call returns as trouble, or what it raised."""
    try:
        return call()
    except Exception as error:
        return [f"CRASH {type(error).__name__}: {error}"]


def one(name: str, here) -> list[str]:
    """Return what is wrong with one class; an empty list where nothing is."""
    import comfy.model_patcher
    import comfy.sample
    import comfy.supported_models
    import node_helpers

    from memguard_pack.memguard import Guard, mitigations
    from memguard_pack.memguard.hosts.comfyui import explaining, graph, preflight
    from memguard_pack.memguard.hosts.comfyui.treating import Treater
    from memguard_pack.memguard.hosts.comfyui.watcher import Watcher
    from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import Clip

    torch, tiny = here.torch, here.tiny
    settings, shape, width, pooled, extra = here.rows[name]
    config = getattr(comfy.supported_models, name)({"dtype": torch.float32, **settings})
    for key in {"num_heads", "num_head_channels"} & settings.keys() & config.unet_config.keys():
        config.unet_config[key] = settings[key]
    config.set_inference_dtype(torch.float32, None)
    config.optimizations = getattr(config, "optimizations", {})
    network = config.get_model({}, "", "cpu")
    tiny._fill(network, 0)
    model = comfy.model_patcher.ModelPatcher(network, tiny.CPU, tiny.CPU)
    tiny.WIDTH[name] = width
    clip = Clip(name)
    with torch.inference_mode(False):
        clip.pooled = torch.randn(width, pooled) if pooled else None
    graph.prompt_texts = lambda *_: [PROMPT]
    positive, negative = (
        node_helpers.conditioning_set_values(clip.encode_from_tokens_scheduled(clip.tokenize(text)), extra)
        for text in (PROMPT, "")
    )
    image = comfy.sample.fix_empty_latent_channels(model, torch.zeros((1, *shape)))

    def go(patcher, **more):
        torch.manual_seed(0)
        return tiny.sample(patcher, positive, negative, image, steps=STEPS, **more)

    def watched(label, cfg=7.5, explain="never", empty=None, **guard):
        watcher = Watcher(Guard(("text_noise_norm", "attention_entropy"), **guard), empty, clip=clip, explain=explain)
        equal = torch.equal(go(model, cfg=cfg), go(watcher.install(model), cfg=cfg))
        report = watcher.guard.report
        words = [] if report.attribution is None else [report.attribution.status, *report.attribution.notes]
        said = [*(finding.status for finding in report.findings), *report.notes, report.error or "", *words]
        return [] if equal and not any(map(RAW.search, said)) else [f"{label}: equal {equal}, {said}"]

    def explained(method):
        words = explaining.explain(model, clip, PROMPT, negative, {"samples": image}, 5, method, positive=positive)
        return [f"{method}: {line}" for line in (words.status, *words.notes) if RAW.search(line)]

    def treated(mitigation):
        lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.append(record.getMessage())
        logger = logging.getLogger("memguard")
        logger.addHandler(handler)
        try:
            go(Treater(here.scene.made(mitigation), clip).install(model))
        finally:
            logger.removeHandler(handler)
        return [f"{mitigation}: {line}" for line in lines if RAW.search(line)]

    latent = {"samples": image}
    found = trouble(lambda: watched("watched")) + trouble(lambda: watched("explained", explain="always"))
    found += trouble(lambda: watched("cfg 1", cfg=1.0))
    found += trouble(lambda: watched("reference empty", cfg=1.0, empty=negative, reference="empty"))
    found += trouble(lambda: [preflight.check(Guard(), model, positive, negative, latent, [5]).error or ""])
    for method in ("gradient", "ablation", "attention"):
        found += trouble(partial(explained, method))
    for mitigation in mitigations.available():
        found += trouble(partial(treated, mitigation))
    return [line for line in found if line]


def main() -> int:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=".", help="classes whose name holds this pattern")
    parser.add_argument("--out", type=Path, help="one line of JSON per class")
    asked = parser.parse_args()
    os.environ["MEMGUARD_HOME"] = tempfile.mkdtemp()
    here = enter()
    import comfy.supported_models

    bad = 0
    for name in here.rows:
        if not re.search(asked.only, name):
            continue
        found = ["this ComfyUI has no such class"] if not hasattr(comfy.supported_models, name) else None
        with here.torch.inference_mode():
            rows = one(name, here) if found is None else found
        bad += bool(rows) and found is None
        print(f"{name}: {'; '.join(map(str, rows)) or 'good'}", flush=True)
        if asked.out:
            with asked.out.open("a") as file:
                file.write(json.dumps({"class": name, "trouble": rows}, default=str) + "\n")
    print(f"{bad} of {len(here.rows)} classes with trouble")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
