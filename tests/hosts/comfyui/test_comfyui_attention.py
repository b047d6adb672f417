"""Attention that is read beside the sampler in the real ComfyUI: right, and without a trace in the latents."""

import math

import comfy.ldm.modules.attention as backends
import comfy.lora
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper

from memguard_pack.tests.hosts.comfyui import tiny

BACKENDS = ("attention_pytorch", "attention_sub_quad", "attention_split", "attention_basic")
POSITIVE, NEGATIVE, LONG = tiny.prompt(seed=1), tiny.prompt(seed=2), tiny.prompt(seed=3, tokens=14)
ENTROPY = {"detectors": ["attention_entropy"]}
LAYERS = [
    *(f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn2" for i in (0, 1)),
    "mid_block.attentions.0.transformer_blocks.0.attn2",
    *(f"up_blocks.{i}.attentions.{j}.transformer_blocks.0.attn2" for i in (0, 1) for j in (0, 1)),
]


@pytest.fixture
def seen(watch, rows):
    """A function that samples with and without a guard, compares, and returns the masses and the report."""

    def run(model, positive=POSITIVE, negative=NEGATIVE, image=None, extra=0, **settings):
        image = tiny.latent(batch=2) if image is None else image
        with rows(model) as free:
            plain = tiny.sample(model, positive, negative, image)
        watched, watcher = watch(model, **(ENTROPY | settings))
        with rows(model) as guarded:
            latents = tiny.sample(watched, positive, negative, image)
        assert torch.equal(plain, latents)
        assert sum(guarded) == sum(free) + extra
        assert not any(part._forward_hooks for part in model.model.diffusion_model.modules())
        report = watcher.report_of(latents)
        assert report.error is None and report.extra_rows == extra
        return report

    return run


def by_hand(model, positive, x, sigma, layer="down_blocks.1"):
    """Return the attention of one layer from a bare call of the network: its own weights, no code of ours."""
    index = {
        "down_blocks.0": ("input_blocks", 1),
        "down_blocks.1": ("input_blocks", 3),
        "mid_block": ("middle_block", 1),
    }
    stage, number = index[layer]
    block = getattr(model.model.diffusion_model, stage)
    block = (block[number] if stage == "middle_block" else block[number][1]).transformer_blocks[0].attn2
    inputs = {}
    handle = block.register_forward_pre_hook(
        lambda _m, args, kwargs: inputs.update(x=args[0], **kwargs), with_kwargs=True
    )
    tiny.predict(model, positive, x, sigma)
    handle.remove()
    q, k = inputs["x"] @ block.to_q.weight.T, inputs["context"] @ block.to_k.weight.T
    heads = [
        (a @ b.transpose(1, 2) / math.sqrt(a.shape[-1])).softmax(-1)
        for a, b in zip(q.chunk(block.heads, -1), k.chunk(block.heads, -1), strict=True)
    ]
    return torch.stack(heads).mean(0)


def entropies(mass):
    """Return -sum p ln p of each row, term by term."""
    return [-sum(p * math.log(p) for p in row if p > 0) for row in mass.tolist()]


def test_the_entropy_is_that_of_the_layer_by_hand(seen):
    model = tiny.build("sd15")
    (found,) = seen(model).findings
    x, sigma = tiny.start(model, tiny.latent(batch=2))
    assert found.scores == pytest.approx(entropies(by_hand(model, POSITIVE, x, sigma).mean(1)), rel=1e-5)
    assert found.status == "ok" and found.unit == "entropy of cross-attention, nats" and found.rms == found.scores


def test_prompts_that_comfyui_repeats_to_a_common_length_keep_their_own_columns(seen):
    model = tiny.build("sd15")
    alone = seen(model).findings[0].scores
    assert seen(model, negative=LONG).findings[0].scores == pytest.approx(alone, rel=1e-5)
    assert seen(model, positive=LONG).findings[0].scores != pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_backend_notices(backend, seen):
    model = tiny.build("sd15").clone()

    def override(func, *args, **kwargs):
        return getattr(backends, backend)(*args, **{k: v for k, v in kwargs.items() if k != "transformer_options"})

    plain = seen(model).findings[0].scores
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    assert seen(model).findings[0].scores == pytest.approx(plain, rel=1e-4)


def adapter(calls):
    """Return a replacement of a cross-attention block as IPAdapter makes it: it hides the block from overrides."""

    def replace(q, k, v, extra_options):
        calls.append(q.shape)
        return backends.optimized_attention(q, k, v, extra_options["n_heads"]) * 0.9

    return replace


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_replaced_block_is_read_whether_it_was_replaced_before_or_after(when, watch):
    model, calls = tiny.build("sd15"), []
    changed = model.clone()
    changed.set_model_attn2_replace(adapter(calls), "input", 3)
    plain = tiny.sample(changed, POSITIVE, NEGATIVE, tiny.latent())
    ran = len(calls)
    watched, watcher = watch(changed if when == "before" else model, **ENTROPY)
    if when == "after":
        watched.set_model_attn2_replace(adapter(calls), "input", 3)
    latents = tiny.sample(watched, POSITIVE, NEGATIVE, tiny.latent())
    assert torch.equal(plain, latents) and len(calls) == 2 * ran > 0
    (found,) = watcher.report_of(latents).findings
    x, sigma = tiny.start(model, tiny.latent())
    assert found.scores == pytest.approx(entropies(by_hand(model, POSITIVE, x, sigma).mean(1)), rel=1e-4)


def test_a_lora_on_the_projections_counts(seen):
    model = tiny.build("sd15")
    plain = seen(model).findings[0].scores
    key = "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"
    weight = dict(model.model.named_parameters())[key]
    torch.manual_seed(0)
    up, down = torch.randn(weight.shape[0], 2), torch.randn(2, weight.shape[1])
    loaded = comfy.lora.load_lora({"x.lora_up.weight": up, "x.lora_down.weight": down}, {"x": key})
    changed = model.clone()
    assert changed.add_patches(loaded, 0.3)
    report = seen(changed)
    assert report.findings[0].scores != pytest.approx(plain, rel=1e-3)
    assert any("LoRA" in note for note in report.notes)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_is_read_by_a_call_of_its_own(backend, seen, watch):
    model, image = tiny.build("sd15"), tiny.latent(batch=2)
    expected = seen(model).findings[0].scores
    torch._dynamo.reset()  # graphs of other tests count towards the limit at which frames stay eager
    compiled = model.clone()
    set_torch_compile_wrapper(compiled, backend=backend)
    plain = tiny.sample(compiled, POSITIVE, NEGATIVE, image)
    watched, watcher = watch(compiled, **ENTROPY)
    latents = tiny.sample(watched, POSITIVE, NEGATIVE, image)  # no row is counted: a hook would be compiled as well
    assert torch.equal(plain, latents)
    report = watcher.report_of(latents)
    assert report.findings[0].scores == pytest.approx(expected, rel=1e-3)
    assert report.error is None and report.extra_rows == 2


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_model_without_cross_attention_has_a_reason_and_keeps_its_other_score(kind, watch):
    model, image = tiny.build(kind), tiny.latent(kind)
    watched, watcher = watch(model, detectors=["text_noise_norm", "attention_entropy"])
    latents = tiny.sample(watched, tiny.prompt(kind, 1), tiny.prompt(kind, 2), image)
    assert torch.equal(latents, tiny.sample(model, tiny.prompt(kind, 1), tiny.prompt(kind, 2), image))
    norm, entropy = watcher.report_of(latents).findings
    assert norm.status == "ok" and entropy.scores == ()
    assert entropy.status.endswith("has no cross-attention layers: prompt and picture share their attention")


def test_a_combined_prompt_has_a_reason(seen):
    (found,) = seen(tiny.build("sd15"), positive=[*POSITIVE, *LONG]).findings
    assert found.status == "the prompt is combined of 2 parts, and their attention is not one"


def test_late_steps_need_the_prompts_text(seen):
    (found,) = seen(tiny.build("sd15"), detectors=["attention_entropy_late"]).findings
    assert found.status == "it is not known which columns are EOS and padding"


def test_the_layers_have_their_diffusers_names_in_the_order_of_execution():
    from memguard_pack.memguard.hosts.comfyui.attention import cross_layers

    assert list(cross_layers(tiny.build("sd15").model)) == LAYERS
    sdxl = list(cross_layers(tiny.build("sdxl").model))
    assert sdxl[0] == "down_blocks.1.attentions.0.transformer_blocks.0.attn2" and len(sdxl) == 8
