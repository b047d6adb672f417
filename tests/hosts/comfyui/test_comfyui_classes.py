"""Model classes that take something else than the prompt where others take its pooled vector, and nested latents."""

import comfy.model_patcher
import comfy.supported_models
import pytest
import torch

from memguard_pack.memguard.hosts.comfyui import graph
from memguard_pack.memguard.hosts.comfyui.calls import Call, with_prompt
from memguard_pack.memguard.hosts.comfyui.treating import Treater
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.scene import made
from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import PROMPT, Clip, encode

HEADS = {"use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 16, "num_classes": "sequential"}
KINDS = {"LotusD": {"adm_in_channels": 4}, "SD21UnclipL": {"adm_in_channels": 1536}}


def build(name):
    """Return a UNet of a class of ComfyUI's, tiny and random, with its CLIP."""
    if not hasattr(comfy.supported_models, name):
        pytest.skip(f"this ComfyUI has no {name}")
    config = getattr(comfy.supported_models, name)({**tiny.SD15, **HEADS, **KINDS[name]})
    config.unet_config.update({key: HEADS[key] for key in ("num_heads", "num_head_channels")})
    config.set_inference_dtype(torch.float32, None)
    network = config.get_model({}, "", "cpu")
    tiny._fill(network, 0)
    return comfy.model_patcher.ModelPatcher(network, tiny.CPU, tiny.CPU)


@pytest.mark.parametrize("mitigation", ["random_tokens", "paraphrase"])
@pytest.mark.parametrize("name", KINDS)
def test_another_wording_leaves_what_is_no_part_of_the_prompt(name, mitigation, monkeypatch, caplog):
    monkeypatch.setattr(graph, "prompt_texts", lambda *_: [PROMPT])
    with torch.inference_mode():
        model, clip = build(name), Clip()
        seen = []
        model.model.diffusion_model.register_forward_pre_hook(
            lambda module, inputs, named: seen.append(named["y"]), with_kwargs=True
        )
        settings = [encode(clip), encode(clip, ""), tiny.latent()]
        plain = tiny.sample(model, *settings)
        own = seen[0][:1]
        seen.clear()
        treated = tiny.sample(Treater(made(mitigation), clip).install(model), *settings)
    assert not torch.equal(plain, treated)
    assert all(torch.equal(row, own[0]) for vectors in seen for row in vectors)
    assert not [line for line in caplog.messages if "left out" in line or "left alone" in line or "never" in line]


def test_a_pooled_vector_is_exchanged_and_known_again():
    class Part:
        def __init__(self, cond):
            self.cond = cond

        def _copy_with(self, cond):
            return Part(cond)

    text, pooled, sizes = torch.randn(1, 7, 4), torch.randn(1, 6), torch.randn(1, 3)
    parts = {"c_crossattn": Part(text), "y": Part(torch.cat([pooled, sizes], 1))}
    call = Call(None, torch.zeros(2, 4, 8, 8), torch.ones(2), {})
    cond = {"pooled_output": pooled, "model_conds": parts}
    assert torch.equal(call.encoded(cond).pooled, pooled.expand(2, -1))
    other = with_prompt(cond, text + 1, pooled + 1)
    assert torch.equal(call.encoded(other).pooled, (pooled + 1).expand(2, -1))
    assert torch.equal(other["model_conds"]["y"].cond, torch.cat([pooled + 1, sizes], 1))
    assert call.encoded({**cond, "pooled_output": pooled + 1}).pooled is None
