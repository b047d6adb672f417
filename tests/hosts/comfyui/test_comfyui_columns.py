"""Models that put a prompt's columns elsewhere, or rotate them by operators of their own: words keep their weights."""

import pytest
import torch

from memguard_pack.memguard import Guard
from memguard_pack.memguard.hosts.comfyui.calls import leading
from memguard_pack.memguard.hosts.comfyui.treating import Treater
from memguard_pack.memguard.hosts.comfyui.watcher import Watcher
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.kinds import WIDTH, build
from memguard_pack.tests.hosts.comfyui.scene import made
from memguard_pack.tests.hosts.comfyui.test_comfyui_frames import check_weights

FLUX2 = {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "context_in_dim": WIDTH,
    "hidden_size": 96,
    "mlp_ratio": 3.0,
    "num_heads": 4,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [6, 6, 6, 6],
    "theta": 2000,
    "patch_size": 1,
    "guidance_embed": True,
    "qkv_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
    "txt_ids_dims": [3],
}
ERNIE = {
    "image_model": "ernie",
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_layers": 1,
    "ffn_hidden_size": 96,
    "in_channels": 128,
    "out_channels": 128,
    "text_in_dim": WIDTH,
    "rope_axes_dim": (8, 12, 12),
}
KINDS = {name: (settings, [(128, 4, 4)], WIDTH, {}) for name, settings in (("Flux2", FLUX2), ("ErnieImage", ERNIE))}


@pytest.fixture(params=KINDS)
def picture(request, monkeypatch):
    return build(request.param, KINDS[request.param], monkeypatch)


def test_word_weights_are_the_finite_differences(picture, monkeypatch):
    check_weights(picture, monkeypatch)


def test_prompt_optimisation_acts(picture, caplog):
    model, clip, positive, negative, image = picture
    with torch.inference_mode():
        plain = tiny.sample(model, positive, negative, image, steps=2)
        treated = Treater(made("prompt_optimization"), clip).install(model)
        assert not torch.equal(plain, tiny.sample(treated, positive, negative, image, steps=2))
    assert not [line for line in caplog.messages if "left out" in line]


@pytest.mark.parametrize("name", ["random_tokens", "paraphrase"])
def test_other_wordings_act(name, picture, caplog):
    model, clip, positive, negative, image = picture
    with torch.inference_mode():
        plain = tiny.sample(model, positive, negative, image, steps=2)
        treated = Treater(made(name), clip).install(model)
        assert not torch.equal(plain, tiny.sample(treated, positive, negative, image, steps=2))
    assert not [line for line in caplog.messages if "left out" in line]


def test_the_prompt_itself_as_the_other_wording_changes_nothing(picture):
    model, clip, positive, negative, image = picture
    with torch.inference_mode():
        plain = tiny.sample(model, positive, negative, image, steps=2)
        treated = Treater(made("paraphrase", text="a red fox", lower=1e6, upper=2e6), clip).install(model)
        assert torch.allclose(plain, tiny.sample(treated, positive, negative, image, steps=2), atol=1e-4)


def test_a_prompt_that_was_exchanged_keeps_its_columns(picture):
    """One treatment on another, and the words of the run."""
    model, clip, positive, negative, image = picture
    with torch.inference_mode():
        once = Treater(made("prompt_optimization"), clip).install(model)
        twice = Treater(made("prompt_optimization"), clip).install(once)
        found = [tiny.sample(each, positive, negative, image, steps=2) for each in (once, twice)]
        assert not torch.equal(*found)
        counts = []
        for each in (model, once):
            watcher = Watcher(Guard(policy="observe"), clip=clip, explain="always")
            tiny.sample(watcher.install(each), positive, negative, image, steps=2)
            counts.append(len(watcher.guard.report.attribution.token_scores))
        assert counts[0] == counts[1] == positive[0][0].shape[1]


def test_leading_columns_are_those_before_the_prompts_own():
    class Part:
        def __init__(self, cond):
            self.cond = cond

    own = torch.randn(1, 7, 4)
    filled = torch.cat([torch.zeros(1, 5, 4), own], 1)

    def cond(text, vectors):
        return {"cross_attn": vectors, "model_conds": {"c_crossattn": Part(text)}}

    assert leading(cond(filled, own)) == 5
    assert leading(cond(filled.flip(1), own)) == 0, "filled up behind the prompt, or something else"
    assert leading(cond(own, own)) == 0 and leading(cond(own[:, 1:], own)) == 0
    assert leading(cond(torch.randn(1, 9, 6), own)) == 0, "a model that makes other vectors of the prompt"
    assert leading({"model_conds": {"c_crossattn": Part(own)}}) == 0
