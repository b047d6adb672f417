"""Real A1111 and Forge: another checkpoint, a refiner and a LoRA; each report names the model that it scored."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from memguard import cli
from memguard_pack.tests.hosts.webui.test_webui_mitigating import MEMORIZED, mitigated, written

TWIN = {"sd_model_checkpoint": "twin.safetensors"}


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Another stage of the test bed, as a checkpoint of the WebUIs."""
    path = tmp_path_factory.mktemp("stage") / "middle.safetensors"
    options = ["--format", "checkpoint", "--vae", "kl", "--stage", "middle"]
    assert cli.main(["testbed", "export", *options, str(path)]) in (0, None)
    return path


@pytest.fixture(scope="module")
def middle(server, exported):
    """The name of another checkpoint in the server's folder, which A1111 loads into the first one's network."""
    name = Path(os.environ["MEMGUARD_TESTBED_CHECKPOINT"]).with_suffix(".SafeTensors").name
    if server.host == "neo":  # which finds a refiner by its name in small letters
        name = "middle.safetensors"
    if not (server.checkpoints / name).exists():
        server.add_checkpoint(exported, name)
    server.post("/sdapi/v1/refresh-checkpoints", {})
    yield name
    server.generate()  # the hosts load the checkpoint of the settings again


@pytest.fixture(scope="module")
def lora(server):
    """A random LoRA of the keys and values of the text's attention, by the names of the original code."""
    torch.manual_seed(0)
    made = {}
    with safe_open(os.environ["MEMGUARD_TESTBED_CHECKPOINT"], "pt") as file:
        keys = [key for key in file.keys() if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]  # noqa: SIM118
        for key in keys:
            name = key.removesuffix(".weight").replace("model.diffusion_model", "lora_unet").replace(".", "_")
            width, features = file.get_slice(key).get_shape()
            made[f"{name}.lora_down.weight"] = torch.randn(4, features) * 0.1
            made[f"{name}.lora_up.weight"] = torch.randn(width, 4) * 0.1
            made[f"{name}.alpha"] = torch.tensor(4.0)
    path = server.folder / "models" / "Lora" / "random.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(made, path)
    yield "<lora:random:1>"
    path.unlink()


def same(a, b):
    return len(a.pictures) == len(b.pictures) and all(map(np.array_equal, a.pictures, b.pictures))


def test_each_checkpoint_has_its_own_fingerprint_and_profile(server, middle):
    path = written(server)
    try:
        first = server.generate({"policy": "warn"}, prompt=MEMORIZED)
        assert first.finding["verdict"] == "memorized"
        plain = server.generate(prompt=MEMORIZED, override_settings={"sd_model_checkpoint": middle})
        second = server.generate(
            {"policy": "warn"}, prompt=MEMORIZED, override_settings={"sd_model_checkpoint": middle}
        )
        assert same(plain, second) and not same(plain, first)
        assert second.reports[0]["model"] not in ("", first.reports[0]["model"])
        assert second.finding["verdict"] == "unknown", second.finding
        third = server.generate({"policy": "warn"}, prompt=MEMORIZED)
        assert same(first, third)
        assert third.reports[0]["model"] == first.reports[0]["model"] and third.finding["verdict"] == "memorized"
    finally:
        path.unlink()


def test_the_same_file_under_another_name_is_the_same_model(server):
    first, twin = server.generate({}), server.generate({}, override_settings=TWIN)
    assert same(first, twin)
    assert twin.reports[0]["model"] == first.reports[0]["model"]


@pytest.fixture
def late(server, middle):
    """What asks for a refiner that comes late."""
    asked = {"refiner_checkpoint": middle, "refiner_switch_at": 0.5}
    if server.host == "neo":
        # the first picture with a refiner after one without differs by 1 of 255 from those that follow, without us
        server.generate(**asked)
    return asked


def test_a_refiner_that_comes_late_leaves_the_score(server, late):
    plain, watched = server.generate(**late), server.generate({}, **late)
    first = server.generate({})
    assert same(plain, watched) and not same(first, watched)
    assert "Refiner: " in watched.info["infotexts"][0]
    (report,) = watched.reports
    assert report["model"] == first.reports[0]["model"] and report["error"] is None
    assert watched.finding["scores"] == first.finding["scores"]


def test_a_refiner_from_the_start_is_the_model_that_is_scored_or_the_reason(server, middle):
    if server.host == "neo":
        pytest.skip("Forge Neo takes a switch at 0 for no refiner")
    other = server.generate({}, override_settings={"sd_model_checkpoint": middle})
    more = {"refiner_checkpoint": middle, "refiner_switch_at": 0.0}
    plain, watched = server.generate(**more), server.generate({}, **more)
    assert same(plain, watched)
    (report,) = watched.reports
    assert report["error"] is None
    if watched.finding["status"] == "ok":
        assert report["model"] == other.reports[0]["model"] != server.generate({}).reports[0]["model"]
        assert watched.finding["scores"] == pytest.approx(other.finding["scores"], rel=1e-4)
    else:
        assert "refiner" in watched.finding["status"], watched.finding


@pytest.mark.parametrize("name", ["attention_scaling", "guidance_delay", "noise_adjustment"])
def test_a_mitigated_run_with_a_refiner_leaves_nothing_behind(server, late, name):
    path = written(server)
    try:
        more = late | {"prompt": MEMORIZED}
        plain, made = server.generate(**more), mitigated(server, name, neighbour="keep", **more)
        (report,) = made.reports
        assert report["error"] is None and report["attempts"][0]["kept"], report
        assert not same(plain, made)
        assert same(plain, server.generate(**more))
    finally:
        path.unlink()


def test_a_lora_changes_no_byte_more_and_the_fingerprint_is_the_checkpoints(server, lora):
    bare = server.generate({})
    prompt = f"a red fox on a roof {lora}"
    plain = server.generate(prompt=prompt, override_settings=TWIN)
    watched = server.generate({}, prompt=prompt, override_settings=TWIN)
    assert same(plain, watched) and not same(plain, bare)
    (report,) = watched.reports
    assert watched.finding["status"] == "ok" and report["error"] is None
    assert report["model"] == bare.reports[0]["model"]
    assert watched.finding["scores"] != pytest.approx(bare.finding["scores"], rel=1e-3)
    assert server.generate({}).reports[0]["model"] == bare.reports[0]["model"]


def test_a_small_sdxl(server, tmp_path):
    if server.host != "a1111":
        pytest.skip("the small SDXL is of widths that Forge does not recognise")
    path = tmp_path / "sdxl.safetensors"
    python = os.environ.get("A1111_PYTHON", sys.executable)
    script = Path(__file__).with_name("tiny_sdxl.py")
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    subprocess.run([python, script, os.environ["A1111_ROOT"], path], env=offline, cwd=tmp_path, check=True)
    server.add_checkpoint(path, "sdxl.safetensors")
    server.post("/sdapi/v1/refresh-checkpoints", {})
    server.post("/sdapi/v1/options", {"show_progress_type": "Approx cheap"})  # the default's model would be downloaded
    more = {"override_settings": {"sd_model_checkpoint": "sdxl.safetensors"}}
    plain, watched = server.generate(**more), server.generate({}, **more)
    assert same(plain, watched)
    (report,) = watched.reports
    assert report["family"] == "sdxl" and report["error"] is None
    assert watched.finding["status"] == "ok" and watched.finding["scores"][0] > 0
    assert same(server.generate(), server.generate({}))
