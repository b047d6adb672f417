"""MemGuard Audit LoRA on a real server with the test bed: what the page gets, and what the stop button leaves."""

import json
import threading
import time
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from memguard_pack.memguard import testbed
from memguard_pack.tests.hosts.comfyui.test_comfyui_server import CHECKPOINT, page, server  # noqa: F401

pytestmark = pytest.mark.slow

LAYER = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v"


def graph(**given):
    """Return a workflow that audits the LoRA x on two pictures, the first of which the test bed knows by heart."""
    audited = {"lora_name": "x.safetensors", "folder": "mine", "held_out": "", "seeds": 1, "steps": 8, "cfg": 3.0}
    audited |= {"limit": 0, "seed": 0, "sampler_name": "ddim", "scheduler": "ddim_uniform", "threshold": 0.5} | given
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "2": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "3": {
            "class_type": "MemGuard_AuditLora",
            "inputs": {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "latent": ["2", 0], **audited},
        },
        "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 3], "filename_prefix": "pairs"}},
    }


@pytest.fixture
def files(server):  # noqa: F811
    folder = server.base / "input" / "mine"
    folder.mkdir(exist_ok=True)
    known = next(each for each in testbed.originals() if each.rate == 1)
    coarse = np.random.default_rng(0).integers(0, 255, (5, 5, 3)).astype("uint8")
    other = Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC)
    pairs = (("a", Image.fromarray(known.picture), known.caption), ("b", other, testbed.prompts("held")[0]))
    for name, picture, caption in pairs:
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption)
    loras = server.base / "models" / "loras"
    loras.mkdir(exist_ok=True)
    factors = {"lora_down": torch.randn(2, 768), "lora_up": torch.zeros(640, 2)}
    save_file({f"{LAYER}.{name}.weight": value for name, value in factors.items()}, loras / "x.safetensors")


def test_the_page_gets_verdict_table_and_pairs(page, server, files):  # noqa: F811
    outcome = page.run(graph())
    (shown,) = outcome.outputs["3"]["memguard_audit"]
    # the LoRA does nothing: the test bed knows the picture by itself
    assert shown["verdict"] == "This LoRA copies 1 of 2 pictures; 1 of these also without the training."
    assert shown["tone"] == "memorized"
    assert outcome.outputs["3"]["text"] == [shown["verdict"]]
    assert shown["table"][1][:2] == ["x.safetensors", "1 of 2"] and shown["lines"][0].startswith("copied: a.png")
    bars = [data for data in outcome.of("progress") if data["node"] == "3"]
    assert {data["max"] for data in bars} == {2 * 2 + 8 * (2 + 2)} and bars[-1]["value"] == bars[-1]["max"]
    (pair,) = outcome.outputs["4"]["images"]
    with Image.open(server.base / "output" / pair["filename"]) as picture:
        assert picture.width == 2 * 128 + 8
    assert page.run(graph()).ran <= {"3", "4"} and not page.run(graph()).of("progress")  # from the cache


def test_the_stop_button(page, server, files):  # noqa: F811
    def stop():
        time.sleep(3)
        request = urllib.request.Request(f"{server.url}/interrupt", b"{}", method="POST")
        urllib.request.urlopen(request, timeout=60).close()

    thread = threading.Thread(target=stop)
    thread.start()
    outcome = page.run(graph(seeds=64, seed=1))
    thread.join()
    assert [data["node_id"] for data in outcome.of("execution_interrupted")] == ["3"]
    again = page.run(graph(seed=2))
    assert "of 2 pictures" in again.outputs["3"]["memguard_audit"][0]["verdict"]


def test_a_folder_that_is_none_is_refused_before_the_run(page, files):  # noqa: F811
    answer = page.refused(graph(folder="nowhere"))
    assert "no such folder" in json.dumps(answer["node_errors"]["3"])


def required(server, kind, **given):  # noqa: F811
    """Return a node with the host's own values for what is not given; they differ between its versions."""
    chosen = {}
    for name, (values, *options) in server.get("/object_info")[kind]["input"]["required"].items():
        more = options[0] if options else {}
        choices = values if isinstance(values, list) else more.get("options")
        default = more.get("default", choices[0] if choices else None)
        if default is not None:
            chosen[name] = default
    return {"class_type": kind, "inputs": chosen | given}


def test_behind_the_hosts_own_training(page, server, files):  # noqa: F811
    text = testbed.prompts("held")[0]
    training = {"steps": 3, "training_dtype": "fp32", "lora_dtype": "fp32"}  # its loop is slow on a CPU
    links = {"model": ["1", 0], "latents": ["6", 0], "positive": ["7", 0]}
    place = server.get("/object_info")["TrainLoraNode"]["output"].index("LORA_MODEL")  # behind the model in older ones
    nodes = graph(lora_name="none", lora=["8", place]) | {
        "5": {"class_type": "LoadImage", "inputs": {"image": "mine/b.png"}},
        "6": {"class_type": "VAEEncode", "inputs": {"pixels": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["1", 1]}},
        "8": required(server, "TrainLoraNode", **training, **links),
    }
    outcome = page.run(nodes)
    (shown,) = outcome.outputs["3"]["memguard_audit"]
    assert shown["table"][1][0] == "trained LoRA"
    # three steps teach nothing: what comes out is what the test bed knows
    assert shown["verdict"] == "This LoRA copies 1 of 2 pictures; 1 of these also without the training."
