"""LoRA files of every naming act as their formula says, go off again bit for bit, and a foreign one is refused."""

import pytest
import torch

from memguard.hosts.diffusers import loras
from memguard.testbed.ldm_names import unet_name
from memguard.troubles import Refused
from memguard_pack.tests.hosts import tiny

pytest.importorskip("peft")

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "up_blocks.0.resnets.1.conv1"
UP = "up_blocks.0.upsamplers.0.conv"
ENCODER = "text_model.encoder.layers.1.self_attn.q_proj"
RANK, ALPHA = 3, 1.5


def core(name: str) -> str:
    return name.removeprefix("text_model.")


def layer(pipe, name: str):
    if name == ENCODER:
        encoder = getattr(pipe.text_encoder, "text_model", pipe.text_encoder)
        return encoder.get_submodule(core(name))
    return pipe.unet.get_submodule(name)


def factors(pipe, name: str):
    weight = layer(pipe, name).weight
    draw = torch.Generator().manual_seed(len(name))
    down = torch.randn(RANK, *weight.shape[1:], generator=draw)
    up = torch.randn(weight.shape[0], RANK, *(1,) * (weight.ndim - 2), generator=draw)
    return down, up


def kohya(name: str) -> str:
    return f"lora_te_{name.replace('.', '_')}" if name == ENCODER else f"lora_unet_{name.replace('.', '_')}"


def ldm(name: str) -> str:
    return unet_name(f"{name}.weight").removesuffix(".weight")


NAMINGS = {
    # naming -> name of a layer in it, its two factors, whether it has alpha
    "kohya": (kohya, ".lora_down.weight", ".lora_up.weight", True),
    "kohya, names of the checkpoint": (
        lambda n: kohya(n) if n == ENCODER else f"lora_unet_{ldm(n).replace('.', '_')}",
        ".lora_down.weight",
        ".lora_up.weight",
        True,
    ),
    "ComfyUI": (
        lambda n: f"text_encoders.clip_l.transformer.{n}" if n == ENCODER else f"diffusion_model.{ldm(n)}",
        ".lora_down.weight",
        ".lora_up.weight",
        True,
    ),
    "diffusers": (
        lambda n: f"text_encoder.{n}" if n == ENCODER else f"unet.{n}",
        ".lora_A.weight",
        ".lora_B.weight",
        False,
    ),
    "diffusers, old": (
        lambda n: f"text_encoder.{n}" if n == ENCODER else f"unet.{n}",
        ".lora.down.weight",
        ".lora.up.weight",
        False,
    ),
    "peft": (
        lambda n: f"text_encoder.{n}" if n == ENCODER else f"base_model.model.{n}",
        ".lora_A.default.weight",
        ".lora_B.default.weight",
        False,
    ),
}
LAYERS = (LINEAR, CONV, UP, ENCODER)


@pytest.mark.parametrize("naming", NAMINGS)
def test_each_naming_adds_alpha_over_rank_times_up_times_down(naming):
    rename, below, above, has_alpha = NAMINGS[naming]
    pipe = tiny.sd()
    state, expected = {}, {}
    for name in LAYERS:
        down, up = factors(pipe, name)
        flat = naming == "ComfyUI"  # its node trains matrices, also for convolutions
        state[rename(name) + below] = down.flatten(1) if flat else down
        state[rename(name) + above] = up.flatten(1) if flat else up
        if has_alpha:
            state[f"{rename(name)}.alpha"] = torch.tensor(ALPHA)
        change = (up.flatten(1) @ down.flatten(1)) * (ALPHA / RANK if has_alpha else 1.0)
        weight = layer(pipe, name).weight
        expected[name] = weight.detach() + change.reshape(weight.shape)
    plain = tiny.sd()
    for name, weight in expected.items():
        with torch.no_grad():
            layer(plain, name).weight.copy_(weight)
    call = {"num_inference_steps": 2, "output_type": "latent"}
    asked = plain("a red fox", generator=torch.manual_seed(0), **call).images
    before = pipe("a red fox", generator=torch.manual_seed(0), **call).images
    names = dict(pipe.unet.named_parameters()).keys()
    lora = loras.fitted(pipe, state, "one.safetensors")
    with loras.applied(pipe, lora):
        found = pipe("a red fox", generator=torch.manual_seed(0), **call).images
    assert torch.allclose(found, asked, atol=2e-4, rtol=1e-4)
    assert not torch.allclose(before, asked, atol=1e-2)
    assert torch.equal(pipe("a red fox", generator=torch.manual_seed(0), **call).images, before)
    assert dict(pipe.unet.named_parameters()).keys() == names


def test_comfyui_s_node_also_trains_norms_and_biases_whole():
    pipe = tiny.sd()
    norm = "down_blocks.0.resnets.0.norm1"
    state = {
        f"diffusion_model.{ldm(norm)}.diff": torch.full((16,), 0.5),
        f"diffusion_model.{ldm(CONV)}.diff_b": torch.full((layer(pipe, CONV).bias.numel(),), 0.25),
    }
    down, up = factors(pipe, CONV)
    state |= {f"diffusion_model.{ldm(CONV)}.lora_down.weight": down.flatten(1)}
    state |= {f"diffusion_model.{ldm(CONV)}.lora_up.weight": up.flatten(1)}
    weight, bias = layer(pipe, norm).weight.clone(), layer(pipe, CONV).bias.clone()
    with loras.applied(pipe, loras.fitted(pipe, state, "x")):
        assert torch.equal(layer(pipe, norm).weight, weight + 0.5)
        assert torch.equal(layer(pipe, CONV).base_layer.bias, bias + 0.25)
    assert torch.equal(layer(pipe, norm).weight, weight) and torch.equal(layer(pipe, CONV).bias, bias)


def test_one_for_another_base_is_refused_with_keys_and_shapes():
    pipe = tiny.sd()
    state = {f"{kohya(LINEAR)}.lora_down.weight": torch.zeros(4, 768)}
    state |= {f"{kohya(LINEAR)}.lora_up.weight": torch.zeros(320, 4)}
    state |= {"lora_unet_down_blocks_7_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 8)}
    state |= {"lora_unet_down_blocks_7_attentions_0_proj_in.lora_up.weight": torch.zeros(8, 4)}
    with pytest.raises(Refused) as told:
        loras.fitted(pipe, state, "other.safetensors")
    said = str(told.value)
    assert said.startswith("other.safetensors: is for another base model: 1 of 2 layers have other shapes")
    assert f"unet.{LINEAR} [320, 768] for [16, 32]" in said
    assert "1 of 2 are not in this model (lora_unet_down_blocks_7_attentions_0_proj_in)" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "only LoRA can be audited"),
        ("unet.mid_block.attentions.0.proj_in.dora_scale", "only LoRA can be audited"),
        ("model.diffusion_model.out.2.weight", "a whole model goes in by --checkpoint"),
    ],
)
def test_what_is_no_lora_is_refused(key, said):
    with pytest.raises(Refused, match=said):
        loras.fitted(tiny.sd(), {key: torch.zeros(2, 2)}, "x.safetensors")


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("kept", [0, 1])
def test_half_a_pair_is_said_to_be_one(naming, kept):
    rename, below, above, _ = NAMINGS[naming]
    pipe = tiny.sd()
    pairs = {name: dict(zip((below, above), factors(pipe, name), strict=True)) for name in (LINEAR, CONV)}
    state = {rename(name) + end: value for name, pair in pairs.items() for end, value in pair.items()}
    key = rename(LINEAR) + (below, above)[kept]
    del state[rename(LINEAR) + (above, below)[kept]]
    with pytest.raises(Refused) as told:
        loras.fitted(pipe, state, "x.safetensors")
    said = f"x.safetensors: is not whole: the other half of {key} is missing (1 of 2 layers); save it again"
    assert str(told.value) == said
    with pytest.raises(Refused, match=r"is missing \(1 of 1 layers\)"):
        loras.fitted(pipe, {key: state[key]}, "x.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e5m2])
def test_values_that_are_no_numbers_are_said_with_their_key(value, dtype):
    pipe = tiny.sd()
    down, up = factors(pipe, LINEAR)
    up[1, 2] = value
    state = {f"{kohya(LINEAR)}.lora_down.weight": down.to(dtype), f"{kohya(LINEAR)}.lora_up.weight": up.to(dtype)}
    with pytest.raises(Refused) as told:
        loras.fitted(pipe, state | {"step": torch.tensor(7)}, "x.safetensors")
    said = f"x.safetensors: holds values that are no numbers ({kohya(LINEAR)}.lora_up.weight)"
    assert str(told.value) == f"{said}; take a checkpoint from before that"


def test_a_damaged_file_and_a_pickle_are_refused(tmp_path):
    broken = tmp_path / "cut.safetensors"
    broken.write_bytes(b"\x40\0\0\0\0\0\0\0{")
    with pytest.raises(Refused, match="cut.safetensors: cannot be read; it is damaged"):
        loras.read(broken)
    with pytest.raises(Refused, match="pickles"):
        loras.read(tmp_path / "old.ckpt")
    with pytest.raises(Refused, match="none.safetensors: no such file"):
        loras.read(tmp_path / "none.safetensors")


@pytest.mark.parametrize("build", [tiny.sdxl, tiny.sd3, tiny.flux])
def test_other_families_take_diffusers_names(build):
    pipe = build()
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    module = getattr(pipe, part)
    name = next(n for n, m in module.named_modules() if n.endswith("to_q"))
    weight = module.get_submodule(name).weight
    state = {f"{part}.{name}.lora_A.weight": torch.randn(2, weight.shape[1])}
    state |= {f"{part}.{name}.lora_B.weight": torch.randn(weight.shape[0], 2)}
    before = weight.detach().clone()
    with loras.applied(pipe, loras.fitted(pipe, state, "x")):
        assert module.get_submodule(name).base_layer.weight.shape == before.shape
        assert hasattr(module.get_submodule(name), "lora_A")
    assert torch.equal(module.get_submodule(name).weight, before)


@pytest.mark.parametrize(
    ("down", "up", "alpha"),
    [((2, 32), (32, 3), ()), ((0, 32), (32, 0), ()), ((), (), ()), ((2, 32), (32, 2), (2,))],
)
def test_factors_that_do_not_fit_each_other_are_said_to_be_so(down, up, alpha):
    state = {"a.lora_A.weight": torch.ones(down), "a.lora_B.weight": torch.ones(up), "a.alpha": torch.ones(alpha)}
    with pytest.raises(Refused) as told:
        loras.check(state, "x.safetensors")
    shapes = f"(down {list(down)}, up {list(up)}, alpha {list(alpha)}); save it again"
    assert str(told.value) == f"x.safetensors: the shapes of a.lora_A.weight do not fit each other {shapes}"


def test_what_is_no_part_of_a_lora_is_said():
    pipe = tiny.sd()
    down, up = factors(pipe, LINEAR)
    stem = kohya(LINEAR)
    state = {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(ALPHA)}
    assert loras.fitted(pipe, state, "x.safetensors").remark("x.safetensors") == ()
    found = loras.fitted(pipe, state | {"bundle_emb.sks.string_to_param": torch.zeros(1)}, "x.safetensors")
    (line,) = found.remark("x.safetensors")
    assert "1 of its tensors are no part of a LoRA and do not act (bundle_emb.sks.string_to_param)" in line
