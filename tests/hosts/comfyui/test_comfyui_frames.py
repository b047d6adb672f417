"""Latents with an axis of frames, of one frame for a picture: word weights against differences, local guidance."""

import comfy.model_patcher
import comfy.sample
import comfy.supported_models
import pytest
import torch

from memguard_pack.memguard import Guard
from memguard_pack.memguard.hosts.comfyui import explaining, graph, preflight, weighing
from memguard_pack.memguard.hosts.comfyui.treating import Treater
from memguard_pack.memguard.hosts.comfyui.watcher import Watcher
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import made
from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import Clip

WIDTH = 64
KINDS = {
    "QwenImage": {
        "image_model": "qwen_image",
        "in_channels": 64,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 4,
        "joint_attention_dim": WIDTH,
        "axes_dims_rope": (4, 6, 6),
    },
    "Anima": {
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
    },
}


def build(name, settings, size, monkeypatch):
    """Return a tiny random model of a class of ComfyUI's, its CLIP, prompt, negative prompt and latent."""
    monkeypatch.setattr(graph, "prompt_texts", lambda *_: ["a red fox"])
    if not hasattr(comfy.supported_models, name):
        pytest.skip(f"this ComfyUI has no {name}")
    monkeypatch.setitem(tiny.WIDTH, name, settings.get("crossattn_emb_channels", WIDTH))
    with torch.inference_mode():
        config = getattr(comfy.supported_models, name)({**settings, "dtype": torch.float32})
        config.set_inference_dtype(torch.float32, None)
        config.optimizations = {}
        network = config.get_model({}, "", "cpu")
        tiny._fill(network, 0)
        model = comfy.model_patcher.ModelPatcher(network, tiny.CPU, tiny.CPU)
        clip = Clip(name)
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in ("a red fox", ""))
        image = comfy.sample.fix_empty_latent_channels(model, torch.zeros((1, *size)))
    return model, clip, positive, negative, image


@pytest.fixture(params=KINDS)
def picture(request, monkeypatch):
    """A model of one-frame latents, its CLIP, prompt, negative prompt and latent."""
    found = build(request.param, KINDS[request.param], (16, 1, 8, 8), monkeypatch)
    assert found[-1].ndim == 5 and found[-1].shape[2] == 1
    return found


def check_weights(picture, monkeypatch):
    """Compare the words' weights with how far the score moves when their columns are moved."""
    model, clip, positive, negative, image = picture
    taken = []
    take = weighing._gradient
    monkeypatch.setattr(weighing, "_gradient", lambda *asked: (taken.append(take(*asked)), taken[-1])[1])
    with torch.inference_mode():
        latent = {"samples": image}
        found = explaining.explain(model, clip, "a red fox", negative, latent, 5, respect_to="encoded")
        assert found.status == "ok" and found.method == "gradient" and found.notes == ()

        def score(shift):
            moved = [[positive[0][0] + shift, positive[0][1]]]
            return preflight.check(Guard(), model, moved, negative, latent, [5]).findings[0].score

        count, columns = positive[0][0].shape[1], slice(1, 4)  # the words
        (gradient, _) = taken[0]
        gradient = gradient[:, -count:]  # what is more stands before them
        along = torch.zeros_like(positive[0][0])
        along[:, columns] = gradient[:, columns]
        along /= along.norm()
        step = 0.01 * found.score / float(gradient[:, columns].norm())  # the score moves by about a hundredth
        slope = (score(step * along) - score(-step * along)) / (2 * step)
    assert found.score == pytest.approx(score(0 * along), rel=1e-4)
    assert slope == pytest.approx(float((gradient[0] * along[0]).sum()), rel=0.03)
    assert [weight for _, weight in found.words] == pytest.approx(
        [float(gradient[0, column].norm()) for column in (1, 2, 3)], rel=1e-4
    )


def test_word_weights_are_the_finite_differences(picture, monkeypatch):
    check_weights(picture, monkeypatch)


def test_local_guidance_acts_and_a_watched_run_is_the_plain_one(picture):
    model, clip, positive, negative, image = picture
    with torch.inference_mode():
        settings = {"steps": 2, "scheduler": "simple"}
        plain = tiny.sample(model, positive, negative, image, **settings)
        treated = Treater(made("local_guidance"), clip).install(model)
        assert not torch.equal(plain, tiny.sample(treated, positive, negative, image, **settings))
        watcher = Watcher(Guard(), clip=clip, explain="always")
        assert torch.equal(plain, tiny.sample(watcher.install(model), positive, negative, image, **settings))
    report = watcher.guard.report
    assert report.attribution.status == "ok" and any(report.attribution.weights)
    assert report.noise_gap_map.shape == (1, 8, 8) and report.error is None
