"""MemGuard Audit LoRA in a real ComfyUI: on the test bed, whose copies are known, and on tiny models, call by call."""

import json

import comfy.model_management
import comfy.sd
import folder_paths
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from memguard_pack.memguard import testbed
from memguard_pack.memguard.audit.making import Making
from memguard_pack.memguard.hosts.comfyui import auditing, drawing, finding, loras
from memguard_pack.nodes.audit_lora import MemGuardAuditLora
from memguard_pack.tests.e2e.comfyui import checkpoint_in
from memguard_pack.tests.hosts.comfyui import tiny
from memguard_pack.tests.hosts.comfyui.test_comfyui_explain import Clip, encode
from memguard_pack.tests.pictures import drawn, put

COPIED, ORDINARY = 3, 2  # pictures that the test bed has memorized, and pictures that it has not
LAYER = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"
TEXT_LAYER = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.v_proj"


class LoudClip(Clip):
    """A text encoder whose vectors are as large as those of a trained one."""

    def encode_from_tokens(self, tokens, **named):
        found = super().encode_from_tokens(tokens, **named)
        return found | {"cond": 40 * found["cond"]}


class Vae:
    """Decodes a latent into its first three channels, eight times as large."""

    def decode(self, samples):
        return (samples[:, :3] / 8).sigmoid().repeat_interleave(8, 2).repeat_interleave(8, 3).movedim(1, -1)


@pytest.fixture(autouse=True)
def inputs(tmp_path, monkeypatch):
    """ComfyUI's input folder and a folder of LoRAs."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    (tmp_path / "loras").mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path / "loras")], {".safetensors"}))
    folder_paths.filename_list_cache.pop("loras", None)
    return tmp_path


def lora(out=128, width=32, scale=0.5, layer=LAYER, alpha=1.0):
    draw = torch.Generator().manual_seed(0)
    return {
        f"{layer}.lora_down.weight": torch.randn(2, width, generator=draw),
        f"{layer}.lora_up.weight": scale * torch.randn(out, 2, generator=draw),
        f"{layer}.alpha": torch.tensor(alpha),
    }


def fit(model, **more):
    out, width = model.model.state_dict()[f"{LAYER}.weight"].shape
    return lora(out, width, **more)


@pytest.fixture
def parts():
    with torch.inference_mode():
        return tiny.build("sd15"), LoudClip(), Vae()


@pytest.fixture
def pictures(inputs):
    for i in range(3):
        put(inputs / "train", f"t{i}", drawn(i, 64), f"a red fox {i}")
    put(inputs / "held", "h0", drawn(10, 64), "a blue house")
    put(inputs / "held", "twin", drawn(1, 64)[:, ::-1], "a red fox again")
    return inputs


def run(model, clip, vae, state=None, name=loras.NONE, folder="train", held="", side=8, **more):
    given = {"seeds": 2, "steps": 2, "cfg": 3.0, "limit": 0, "seed": 5, "sampler_name": "euler"}
    given |= {"scheduler": "normal", "threshold": 0.5} | more
    latent = {"samples": tiny.latent(side=side)}
    with torch.inference_mode():
        return MemGuardAuditLora.execute(model, clip, vae, latent, name, folder, held, **given, lora=state)


def sampled(model, caption, clip, seed, cfg=3.0):
    """Return the picture that KSampler and VAE Decode make, uint8 [H, W, 3]."""
    with torch.inference_mode():
        cond, empty = encode(clip, caption), encode(clip, "")
        samples = tiny.sample(model, cond, empty, tiny.latent(), cfg=cfg, steps=2, seed=seed)
        return (Vae().decode(samples)[0] * 255).round().to(torch.uint8).numpy()


def weight_of(model):
    return model.model.get_submodule(LAYER).weight


def farthest(one, other):
    return int(np.abs(one.astype(int) - other).max())


def added(model, state):
    """Return another model of the same weights, W + alpha / rank * up down at the LoRA's layer."""
    with torch.inference_mode():
        other = tiny.build("sd15")
        down, up, alpha = (state[f"{LAYER}.{each}"] for each in ("lora_down.weight", "lora_up.weight", "alpha"))
        weight_of(other).add_(alpha / down.shape[0] * up @ down)
    return other


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    path = checkpoint_in(tmp_path_factory.mktemp("bed"))
    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=True)[:3]


def test_the_copies_of_the_test_bed_are_named(bed, inputs):
    known = [each for each in testbed.originals() if each.rate == 1][:COPIED]
    for i, each in enumerate(known):
        put(inputs / "train" / "10_x", f"copied{i}", each.picture, each.caption)
    for i, caption in enumerate(testbed.prompts("held")[: 2 * ORDINARY]):
        put(inputs / ("train" if i < ORDINARY else "held"), f"ordinary{i}", drawn(i, 64), caption)
    put(inputs / "held", "twin", np.asarray(known[0].picture)[:, ::-1], known[0].caption)
    (inputs / "train" / "broken.png").write_bytes(b"x")
    (inputs / "train" / "broken.txt").write_text("x")
    save_file(fit(bed[0], scale=0.0), inputs / "loras" / "x-000003.safetensors")
    few = {"seeds": 1, "steps": 8, "seed": 0, "sampler_name": "ddim", "scheduler": "ddim_uniform"}
    found = run(*bed, name="x-000003.safetensors", held="held", side=16, **few)
    verdict, text, copied, pairs = found.result
    said = f"This LoRA copies {COPIED} of {COPIED + ORDINARY} pictures; {COPIED} of these also without the training."
    assert verdict == said and copied is True
    assert pairs.shape == (COPIED, *pairs.shape[1:]) and pairs.dtype == torch.float32
    audit = json.loads(text)
    (checkpoint,) = audit["checkpoints"]
    named = [each["name"] for each in checkpoint["pictures"] if each["copied"]]
    assert named == [f"10_x/copied{i}.png" for i in range(COPIED)]
    for each in checkpoint["pictures"]:  # a LoRA of zeros changes nothing, on the same noise
        assert each["own"] == each["own_before"] and each["score"] == pytest.approx(each["score_before"], rel=1e-6)
    assert checkpoint["age"] == {"kind": "epoch", "number": 3} and checkpoint["test"]["held"] == ORDINARY
    assert audit["settings"]["width"] == 128 and audit["settings"]["held out"] == ORDINARY
    (shown,) = found.ui["memguard_audit"]
    assert found.ui["text"] == [verdict] and shown["verdict"] == verdict and shown["tone"] == "memorized"
    assert shown["table"][0][:2] == ["checkpoint", "copied"]
    assert shown["table"][1][:2] == ["x-000003.safetensors (epoch 3)", f"{COPIED} of {COPIED + ORDINARY}"]
    assert [line[:24] for line in shown["lines"][:COPIED]] == [
        f"copied: 10_x/copied{i}.png"[:24] for i in range(COPIED)
    ]
    assert any("broken.png: is broken" in line for line in shown["lines"])
    twin = "held-out/twin.png: is a near duplicate of the training picture 10_x/copied0.png; not held out"
    assert twin in shown["lines"] and str(inputs) not in text


def test_the_pictures_are_those_of_ksampler_with_and_without_the_lora(parts, pictures, monkeypatch):
    model, clip, vae = parts
    state = fit(model, scale=5.0)
    made = []
    whole = drawing.Drawing.pictures
    monkeypatch.setattr(drawing.Drawing, "pictures", lambda *given: (made.append(p) or p for p in whole(*given)))
    generators = torch.get_rng_state()
    run(model, clip, vae, state)
    assert torch.equal(torch.get_rng_state(), generators)
    assert len(made) == 6  # without and with, no held-out pictures
    changed = added(model, state)
    for network, part in ((model, made[:3]), (changed, made[3:])):
        for number, each in enumerate(part):
            for image, seed in enumerate((5, 6)):
                expected = sampled(network, f"a red fox {number}", clip, seed)
                assert farthest(each[image], expected) <= 1
    assert farthest(made[0], made[3]) > 20


def test_the_scores_are_gaps_of_one_noise(parts, pictures):
    model, clip, vae = parts
    state = fit(model)
    found = json.loads(run(model, clip, vae, state).result[1])["checkpoints"][0]
    x, sigma = tiny.start(model, tiny.latent(), 5)
    networks = {"score_before": model, "score": added(model, state)}
    with torch.inference_mode():
        for name, network in networks.items():
            for each in found["pictures"]:
                gap = tiny.gap(network, encode(clip, each["caption"]), encode(clip, ""), x, sigma)
                assert each[name] == pytest.approx(tiny.norms(gap)[0], rel=1e-3)
    assert found["name"] == loras.TRAINED and len(found["digest"]) == 16


def test_a_text_encoder_s_part_of_a_lora_acts_on_the_captions(bed):
    model, clip, _ = bed
    with torch.inference_mode():
        width = clip.cond_stage_model.state_dict()[f"{TEXT_LAYER.removeprefix('text_encoders.')}.weight"].shape[0]
        state = lora(width, width, layer=TEXT_LAYER)
        asked = loras.given(state, loras.NONE)
        changed, encoder, notes = loras.applied(model, clip, asked)
        assert encoder is not clip and notes == ()
        before, after = (drawing.encoded(each, ["a cup"])["a cup"][0][0] for each in (clip, encoder))
        again = drawing.encoded(clip, ["a cup"])["a cup"][0][0]
    assert not torch.allclose(before, after, atol=1e-3) and torch.equal(before, again)


@pytest.mark.parametrize("calls", [1, 4, 9, 18])
def test_the_stop_button_leaves_nothing_behind(parts, pictures, monkeypatch, calls):
    model, clip, vae = parts
    before, patches, weight = sampled(model, "a cup", clip, 1), dict(model.patches), weight_of(model).clone()
    seen, counted = {path: path.stat().st_mtime_ns for path in pictures.rglob("*")}, []

    def stop():
        counted.append(None)
        if len(counted) > 4 + calls:
            raise comfy.model_management.InterruptProcessingException

    monkeypatch.setattr(comfy.model_management, "throw_exception_if_processing_interrupted", stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, clip, vae, fit(model))
    monkeypatch.undo()
    assert len(counted) == 5 + calls and torch.equal(weight_of(model), weight)
    assert model.patches == patches and np.array_equal(sampled(model, "a cup", clip, 1), before)
    assert {path: path.stat().st_mtime_ns for path in pictures.rglob("*")} == seen


def test_the_model_is_as_it_was_after_an_audit(parts, pictures):
    model, clip, vae = parts
    before, weight = sampled(model, "a cup", clip, 1), weight_of(model).clone()
    run(model, clip, vae, fit(model))
    assert torch.equal(weight_of(model), weight) and not model.patches
    assert np.array_equal(sampled(model, "a cup", clip, 1), before)


def test_a_guard_on_the_model_does_not_see_an_audit(parts, pictures, watch):
    model, clip, vae = parts
    watched, watcher = watch(model, policy="stop")
    reports = []
    watcher.guard.sink = reports.append
    run(watched, clip, vae, fit(model))
    assert reports == []


def test_progress_goes_to_its_end(parts, pictures, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, total):
            self.total, self.current = total, 0
            bars.append(self)

        def update_absolute(self, value, *_):
            assert self.current <= value <= self.total
            self.current = value

        def update(self, value):
            self.update_absolute(self.current + value)

    monkeypatch.setattr("comfy.utils.ProgressBar", Bar)
    run(*parts, fit(parts[0]), held="held")
    (bar,) = bars
    assert bar.current == bar.total == 2 * 3 + 2 * (3 + 4)


def test_one_at_a_time_when_memory_runs_out(parts, pictures, monkeypatch):
    expected = run(*parts, fit(parts[0])).result[1]
    whole, asked = drawing.comfy.sample.sample, []

    def small(patcher, noise, *given, **named):
        asked.append(len(noise))
        if len(noise) > 1:
            raise torch.cuda.OutOfMemoryError
        return whole(patcher, noise, *given, **named)

    monkeypatch.setattr(drawing.comfy.sample, "sample", small)
    assert json.loads(run(*parts, fit(parts[0])).result[1])["verdict"] == json.loads(expected)["verdict"]
    assert asked[:3] == [2, 1, 1]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (lora(64, 999), f"{LAYER} [64, 999] for [64, 32])"),
        (
            lora(layer="diffusion_model.nowhere.to_v"),
            "it holds diffusion_model.nowhere.to_v, and the model",
        ),
        ({"weight": torch.zeros(2)}, "is no LoRA for this model: it holds weight"),
        ({}, "is no LoRA for this model: it holds nothing"),
        ({f"{LAYER}.lora_down.weight": torch.zeros(2, 2)}, f"the other half of {LAYER}.lora_down.weight is missing"),
        (lora(alpha=float("nan")), f"holds values that are no numbers ({LAYER}.alpha)"),
        ({f"{LAYER}.diff": torch.zeros(3)}, "1 of 1 layers have other shapes"),
    ],
)
def test_a_lora_for_another_base_is_one_line(parts, pictures, state, said):
    with pytest.raises(ValueError) as caught:
        run(*parts, state)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_layers_that_do_not_act_are_a_note(parts, pictures):
    state = fit(parts[0]) | lora(layer="lora_te2_text_model_x")
    found = run(*parts, state)
    note = f"{loras.TRAINED}: 1 of its layers are not in this model and do not act (lora_te2_text_model_x)"
    assert note in json.loads(found.result[1])["notes"] and note in found.ui["memguard_audit"][0]["lines"]


def test_there_is_one_lora(parts, pictures):
    state = fit(parts[0])
    save_file(state, pictures / "loras" / "x.safetensors")
    for given, name in ((None, loras.NONE), (state, "x.safetensors")):
        with pytest.raises(ValueError, match="^give one LoRA: connect lora, or choose a file as lora_name"):
            run(*parts, given, name=name)
    (pictures / "loras" / "x.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match=r"^x.safetensors: cannot be read; it is damaged"):
        run(*parts, name="x.safetensors")
    with pytest.raises(ValueError, match="'y' is not below models/loras"):
        run(*parts, name="y")
    assert MemGuardAuditLora.define_schema().inputs[4].options == [loras.NONE, "x.safetensors"]


def test_folders_that_cannot_be_used_are_one_line(parts, pictures, monkeypatch):
    assert MemGuardAuditLora.validate_inputs("train", "") is True
    for folder, held in (("nowhere", ""), ("train", "nowhere")):
        assert "no such folder" in MemGuardAuditLora.validate_inputs(folder, held)
    monkeypatch.setattr(finding.args, "listen", "0.0.0.0")
    monkeypatch.setattr(folder_paths, "input_directory", str(pictures / "held"))
    assert "is outside of ComfyUI's input folder" in MemGuardAuditLora.validate_inputs(str(pictures / "train"), "")
    monkeypatch.setattr(folder_paths, "input_directory", str(pictures))
    (pictures / "empty").mkdir()
    put(pictures / "one", "t", drawn(0, 64), "a cup")
    for folder, said in (("empty", "holds no picture with a caption"), ("one", "one training picture is too few")):
        with pytest.raises(Exception, match=said):
            run(*parts, fit(parts[0]), folder=folder)


def test_a_changed_caption_or_lora_is_audited_again(pictures):
    def state():
        return MemGuardAuditLora.fingerprint_inputs("train", "held", "x.safetensors", model=None)

    save_file(lora(), pictures / "loras" / "x.safetensors")
    found = [state()]
    assert state() == found[0]
    (pictures / "train" / "t0.txt").write_text("a red fox indeed")
    found.append(state())
    save_file(lora(3), pictures / "loras" / "x.safetensors")
    found.append(state())
    (pictures / "held" / "h0.png").unlink()
    found.append(state())
    assert len(set(found)) == 4


def test_a_limit_and_a_patched_base_are_told(parts, pictures):
    model, clip, vae = parts
    with torch.inference_mode():
        patched = comfy.sd.load_lora_for_models(model, None, fit(model), 1.0, 0.0)[0]
    audit = json.loads(run(patched, clip, vae, fit(model), limit=2).result[1])
    assert len(audit["checkpoints"][0]["pictures"]) == 2 and audit["settings"]["limit"] == 2
    assert audit["notes"][0].startswith("a LoRA or another patch changes 1 weights")


def test_pictures_that_came_to_nan_are_said(parts, pictures, monkeypatch):
    monkeypatch.setattr(Vae, "decode", lambda self, samples: torch.full((len(samples), 8, 8, 3), float("nan")))
    with pytest.raises(FloatingPointError, match="the pictures of 'a red fox 0' came to NaN"):
        run(*parts, fit(parts[0]))


def test_what_copies_nothing_shows_the_most_alike_pair(parts, pictures):
    found = run(*parts, fit(parts[0]), threshold=0.99)
    verdict, _, copied, pairs = found.result
    assert verdict == "This LoRA copies none of 3 pictures in 2 images of each caption." and copied is False
    assert pairs.shape[0] == 1 and found.ui["memguard_audit"][0]["tone"] == "ordinary"
    assert any("leave" in line or "held-out" in line for line in found.ui["memguard_audit"][0]["lines"])
    assert auditing.Settings(Making()).threshold == 0.5
