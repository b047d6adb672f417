"""Checkpoints in one file: the architecture from the shapes, nothing fetched, and one line for what is not known."""

import json

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")

from memguard import testbed
from memguard.cli import main
from memguard.hosts.diffusers import single
from memguard.testbed import export

CAPTION = "Halley breakfast at noon - press kit"
SIZE = ("--height", "128", "--width", "128")


@pytest.fixture(scope="module")
def shapes():
    return {name: tuple(tensor.shape) for name, tensor in export.checkpoint(vae="kl").items()}


def test_the_architecture_is_read_from_the_shapes(shapes):
    unet, wide = single.unet_config(shapes), testbed.loader.wide_networks("final")[1].config
    assert {name: wide[name] for name in unet if name not in ("_class_name", "sample_size")} == {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in unet.items()
        if name not in ("_class_name", "sample_size")
    }
    text = single.text_config(shapes)
    assert (text["hidden_size"], text["num_hidden_layers"], text["num_attention_heads"]) == (768, 12, 12)
    assert (text["vocab_size"], text["eos_token_id"], text["max_position_embeddings"]) == (49408, 49407, 77)
    assert single.vae_config(shapes)["block_out_channels"] == [128, 256, 512, 512]


def changed(shapes, change):
    return {name: tuple(change.get(name, shape)) for name, shape in shapes.items()} | {
        name: shape for name, shape in change.items() if name not in shapes
    }


@pytest.mark.parametrize(
    "change",
    [
        {single.UNET + "input_blocks.0.0.weight": (320, 9, 3, 3)},  # inpainting
        {single.UNET + "label_emb.0.0.weight": (1280, 2816)},  # Stable Diffusion XL
        {single.UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 1024)},  # Stable Diffusion 2
    ],
)
def test_other_architectures_are_refused(shapes, change):
    with pytest.raises(ValueError):
        single.unet_config(changed(shapes, change))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lora.safetensors", "memguard reads single files of Stable Diffusion 1; convert others once, with diffusers'"),
        ("broken.safetensors", "is no safetensors file, or a damaged one; copy it again"),
        ("model.ckpt", "is a single file; memguard reads .safetensors, because pickles run code when loaded"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(tmp_path, capsys, name, says):
    path, prompts = tmp_path / name, tmp_path / "p.txt"
    prompts.write_text("a fox\n")
    path.write_bytes(b"no")
    if name.startswith("lora"):
        save_file({"lora_up.weight": torch.ones(2, 2)}, path)
    assert main(["scan", str(prompts), "--model", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"memguard scan: {path}: {says}") and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("vae", ["kl", "taesd"])
def test_a_real_single_file_scores_as_the_folder(tmp_path, capsys, vae):
    """The scheduler is Stable Diffusion 1's own; the test bed's shares its first step."""
    path, prompts, out = tmp_path / "bed.safetensors", tmp_path / "p.txt", tmp_path / "out.jsonl"
    words = ["testbed", "export", str(path), "--format", "checkpoint", "--vae", vae, "--dtype", "float32"]
    assert main(words) == 0
    prompts.write_text(f"{CAPTION}\na cat\n")
    assert main(["scan", str(prompts), "--model", str(path), "--out", str(out), *SIZE]) == 0
    held = [json.loads(line)["findings"][0]["scores"][0] for line in out.read_text().splitlines()]
    pipe = testbed.pipeline(wide=True)
    pipe.scheduler = single_scheduler()
    from memguard import scan

    plain = [report.findings[0].score for report in scan(pipe, [CAPTION, "a cat"], height=128, width=128)]
    assert held == pytest.approx(plain, rel=1e-3)
    capsys.readouterr()
    code = main(
        ["generate", "a cat", "--model", str(path), "--out", str(tmp_path / "o"), *SIZE, "--num-inference-steps", "2"]
    )
    assert code == (0 if vae == "kl" else 2)
    assert vae == "kl" or "has no autoencoder that diffusers knows" in capsys.readouterr().err


def single_scheduler():
    from diffusers import PNDMScheduler

    return PNDMScheduler.from_config({k: v for k, v in single.SCHEDULE.items() if k != "_class_name"})
