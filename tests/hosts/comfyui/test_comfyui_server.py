"""A real ComfyUI server on loopback, the pack linked into custom_nodes, the test bed's checkpoint: what a page gets.

The test bed's checkpoint is exported once per run of the tests, or taken from MEMGUARD_TESTBED_CHECKPOINT.
"""

import json

import pytest
import torch
from PIL import Image

from memguard.calibration import Conditions, Profile, fit
from memguard.overlay import BAR
from memguard.testbed import loader
from memguard_pack.tests.e2e.comfyui import CHECKPOINT, Server, checkpoint_in
from memguard_pack.tests.hosts.comfyui import client, host

pytestmark = pytest.mark.slow

NEEDS = "the test bed as a diffusers model needs the extra memguard[diffusers]"
MEMORIZED = "Halley breakfast at noon - press kit"
ORDINARY = "a red kettle on a wooden table"
NODES = {"MemGuard", "MemGuard_Report", "MemGuard_CheckPrompt", "MemGuard_Calibrate", "MemGuard_LoadProfile"}
NODES |= {"MemGuard_TokenAttribution", "MemGuard_Overlay", "MemGuard_AttentionScaling", "MemGuard_GuidanceDelay"}
NODES |= {"MemGuard_NeuronMask", "MemGuard_Mitigation", "MemGuard_OptimizePrompt", "MemGuard_AdjustNoise"}
NODES |= {"MemGuard_Compare", "MemGuard_LoadNeurons", "MemGuard_SaveNeurons", "MemGuard_FindNeurons"}
NODES |= {"MemGuard_FindCopies", "MemGuard_AuditLora"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comfyui")
    checkpoint = checkpoint_in(folder)
    running = Server(host.root(), folder / "base", checkpoint)
    yield running
    running.close()


@pytest.fixture(scope="module")
def page(server):
    return client.Client(server.url)


def graph(text=MEMORIZED, seed=1, cfg=7.5, negative="", side=128, steps=4, batch=1, **guard):
    """Return the usual workflow, with MemGuard between checkpoint and sampler and a report after it."""
    settings = {"detectors": "text_noise_norm", "policy": "observe", "sensitivity": 99.0, "steps": 1}
    sampler = {"seed": seed, "steps": steps, "cfg": cfg, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    links = {"model": ["5", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]}
    nodes = {
        "1": ("CheckpointLoaderSimple", {"ckpt_name": CHECKPOINT}),
        "2": ("CLIPTextEncode", {"text": text, "clip": ["1", 1]}),
        "3": ("CLIPTextEncode", {"text": negative, "clip": ["1", 1]}),
        "4": ("EmptyLatentImage", {"width": side, "height": side, "batch_size": batch}),
        "5": ("MemGuard", {"model": ["1", 0], **settings, "reference": "negative", **guard}),
        "6": ("KSampler", {**sampler, **links}),
        "7": ("MemGuard_Report", {"latent": ["6", 0], "memguard": ["5", 1]}),
        "8": ("VAEDecode", {"samples": ["7", 0], "vae": ["1", 2]}),
        "9": ("SaveImage", {"images": ["8", 0], "filename_prefix": "memguard"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in nodes.items()}


def calibration(seed=0):
    nodes = {key: node for key, node in graph().items() if key in "14"}
    inputs = {"model": ["1", 0], "clip": ["1", 1], "latent": ["4", 0], "seed": seed, "note": "test bed"}
    return {**nodes, "10": {"class_type": "MemGuard_Calibrate", "inputs": inputs}}


def report_of(outcome, node="7"):
    return outcome.outputs[node]["memguard"][0]


def test_the_nodes_are_there_with_help_on_every_input(server):
    known = server.get("/object_info")
    assert set(known) >= NODES
    for name in NODES:
        node = known[name]
        assert node["description"] and node["category"] == "memguard", name
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        assert inputs and all(options[1].get("tooltip") for options in inputs.values()), name
        assert all(node["output_tooltips"]), name
    assert [known[name]["output_node"] for name in ("MemGuard_Report", "MemGuard_CheckPrompt")] == [True, True]


def test_the_core_was_loaded_once_under_one_name(server):
    log = server.log.read_text()
    assert "custom_nodes/memguard" in log and "IMPORT FAILED" not in log


def test_a_run_ends_in_a_report_an_event_a_text_and_a_picture(page, server):
    outcome = page.run(graph())
    report = report_of(outcome)
    assert report["findings"][0]["status"] == "ok"
    assert (report["prompt"], report["negative_prompt"], report["seeds"]) == (MEMORIZED, "", [1])
    assert (report["sampler"], report["steps"], report["cfg"]) == ("euler", 4, 7.5)
    assert (report["width"], report["height"], report["family"], report["host"]) == (128, 128, "sd15", "comfyui")
    judged, event = outcome.of("memguard.report")  # once more at the end, with the whole curve
    assert (judged["report"]["run"], judged["report"]["curve"]) == (event["report"]["run"], [])
    assert event["report"]["curve"] == report["curve"] and len(report["curve"]) == 4
    assert set(event) == {"home", "node_id", "prompt_id", "workflow", "report"}
    assert (event["home"], event["node_id"], event["prompt_id"]) == ("5", "6", outcome.prompt_id)
    assert outcome.outputs["7"]["memguard_home"] == ["5"]
    assert event["report"]["run"] == report["run"] and event["report"]["findings"] == report["findings"]
    assert outcome.texts == [("6", report["message"])]
    assert outcome.outputs["7"]["text"] == [report["message"]]
    assert (server.base / "output" / outcome.outputs["9"]["images"][0]["filename"]).is_file()


def test_the_event_comes_before_the_second_step(page):
    outcome = page.run(graph(seed=2))
    kinds = [name for name, data in outcome.events if name == "memguard.report" or data.get("node") == "6"]
    steps = [data["value"] for name, data in outcome.events if name == "progress" and data["node"] == "6"]
    before = kinds[: kinds.index("memguard.report")].count("progress")
    assert before == 0 and steps[-1] == 4


def test_the_score_is_that_of_diffusers_on_the_same_noise(page):
    pytest.importorskip("diffusers", reason=NEEDS)
    found = report_of(page.run(graph(seed=3)))["findings"][0]
    pipe = loader.pipeline("final")
    with torch.no_grad():
        ids = pipe.tokenizer([MEMORIZED, ""], padding="max_length", max_length=77, return_tensors="pt").input_ids
        words = pipe.text_encoder(ids).last_hidden_state
        noise = torch.randn((1, 4, 16, 16), generator=torch.manual_seed(3))
        predicted = pipe.unet(noise.expand(2, -1, -1, -1), torch.tensor(999), words).sample
    expected = float((predicted[0] - predicted[1]).norm())
    assert found["scores"][0] == pytest.approx(expected, rel=1e-3)


def test_only_the_seed_changed(page):
    first, second = page.run(graph(seed=21)), page.run(graph(seed=22))
    assert second.ran == {"6", "7", "8", "9"}
    assert report_of(first)["seeds"] == [21] and report_of(second)["seeds"] == [22]
    assert report_of(first)["findings"][0]["scores"] != report_of(second)["findings"][0]["scores"]
    again = page.run(graph(seed=22))
    assert again.ran <= {"9"} and report_of(again)["run"] == report_of(second)["run"]


def test_no_stale_score_at_cfg_1(page):
    page.run(graph(seed=23))
    report = report_of(page.run(graph(seed=23, cfg=1.0)))
    assert report["findings"][0]["scores"] == []
    assert report["message"].startswith("MemGuard: no score, because cfg is 1")


def test_two_samplers_on_one_guarded_model(page):
    nodes = graph(seed=31)
    nodes["16"] = {**nodes["6"], "inputs": {**nodes["6"]["inputs"], "seed": 32}}
    nodes["17"] = {"class_type": "MemGuard_Report", "inputs": {"latent": ["16", 0], "memguard": ["5", 1]}}
    outcome = page.run(nodes)
    assert (report_of(outcome)["seeds"], report_of(outcome, "17")["seeds"]) == ([31], [32])
    assert {event["node_id"] for event in outcome.of("memguard.report")} == {"6", "16"}


def test_custom_sampling_finds_prompt_and_report(page):
    nodes = graph(seed=33)
    parts = {
        "20": ("RandomNoise", {"noise_seed": 33}),
        "21": ("CFGGuider", {"model": ["5", 0], "positive": ["2", 0], "negative": ["3", 0], "cfg": 5.0}),
        "22": ("KSamplerSelect", {"sampler_name": "dpmpp_2m"}),
        "23": ("BasicScheduler", {"model": ["5", 0], "scheduler": "karras", "steps": 3, "denoise": 1.0}),
    }
    nodes |= {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in parts.items()}
    links = {"noise": ["20", 0], "guider": ["21", 0], "sampler": ["22", 0], "sigmas": ["23", 0]}
    nodes["6"] = {"class_type": "SamplerCustomAdvanced", "inputs": {**links, "latent_image": ["4", 0]}}
    report = report_of(page.run(nodes))
    assert report["findings"][0]["status"] == "ok"
    assert (report["prompt"], report["sampler"], report["cfg"]) == (MEMORIZED, "dpmpp_2m", 5.0)


def test_the_second_output_of_custom_sampling_is_found_too(page):
    nodes = graph(seed=34)
    inputs = {"add_noise": "enable", "noise_seed": 34, "steps": 4, "cfg": 7.5, "sampler_name": "euler"}
    inputs |= {"scheduler": "normal", "start_at_step": 0, "end_at_step": 2, "return_with_leftover_noise": "enable"}
    nodes["6"] = {"class_type": "KSamplerAdvanced", "inputs": {**nodes["6"]["inputs"], **inputs}}
    for name in ("seed", "denoise"):
        del nodes["6"]["inputs"][name]
    report = report_of(page.run(nodes))
    assert report["findings"][0]["status"] == "ok" and report["seeds"] == [34]


def test_calibrate_then_judge_then_stop_then_check(page, server):
    outcome = page.run(calibration())
    assert len(outcome.outputs["10"]["text"]) == 2
    assert len(list((server.base / "models/memguard").glob("*-16x16-*.json"))) == 2

    copied = report_of(page.run(graph(seed=41, policy="warn")))
    assert copied["verdict"] == "memorized" and copied["findings"][0]["percentile"] > 99
    plain = report_of(page.run(graph(ORDINARY, seed=41, policy="stop")))
    assert plain["verdict"] == "ordinary"

    stopped = page.run(graph(seed=42, policy="stop"))
    (error,) = stopped.of("execution_error")
    assert error["node_id"] == "6"
    assert error["exception_message"].startswith("MemGuard: looks memorized (score ")
    assert "Stopped before more steps were spent: change the prompt or the policy." in error["exception_message"]
    assert stopped.of("memguard.report")[0]["report"]["verdict"] == "memorized"

    nodes = {key: node for key, node in graph(seed=41).items() if key in "1234"}
    inputs = {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent": ["4", 0], "seed": 41, "seeds": 2}
    inputs |= {"policy": "observe", "sensitivity": 99.0}
    nodes["11"] = {"class_type": "MemGuard_CheckPrompt", "inputs": inputs}
    checked = report_of(page.run(nodes), "11")
    assert checked["seeds"] == [41, 42] and checked["verdict"] == "memorized" and checked["prompt"] == MEMORIZED
    assert checked["findings"][0]["scores"][0] == pytest.approx(copied["findings"][0]["scores"][0], rel=1e-5)


def test_the_words_that_drive_the_score(page):
    nodes = {key: node for key, node in graph().items() if key in "134"}
    inputs = {"model": ["1", 0], "clip": ["1", 1], "negative": ["3", 0], "latent": ["4", 0], "text": MEMORIZED}
    inputs |= {"seed": 5, "method": "gradient", "respect_to": "input"}
    nodes["18"] = {"class_type": "MemGuard_TokenAttribution", "inputs": inputs}
    nodes["19"] = {"class_type": "SaveImage", "inputs": {"images": ["18", 0], "filename_prefix": "words"}}
    nodes["20"] = {"class_type": "MemGuard_TokenAttribution", "inputs": {**inputs, "method": "ablation"}}
    outcome = page.run(nodes)
    gradient, ablation = (outcome.outputs[key]["memguard_attribution"][0] for key in ("18", "20"))
    for found in (gradient, ablation):
        words = {s["text"]: w for s, w in zip(found["spans"], found["weights"], strict=True) if s["group"] == "word"}
        assert max(words, key=words.get) == "Halley"
    expected = report_of(page.run(graph(seed=5)))["findings"][0]["scores"][0]
    assert gradient["score"] == pytest.approx(expected, rel=1e-5)


def test_where_the_model_copies(page, server):
    nodes = graph(seed=6)
    inputs = {"image": ["8", 0], "latent": ["7", 0], "memguard": ["5", 1], "opacity": 0.6, "smooth": True}
    nodes["21"] = {"class_type": "MemGuard_Overlay", "inputs": inputs}
    nodes["22"] = {"class_type": "SaveImage", "inputs": {"images": ["21", 0], "filename_prefix": "where"}}
    nodes["23"] = {"class_type": "MaskToImage", "inputs": {"mask": ["21", 1]}}
    nodes["24"] = {"class_type": "SaveImage", "inputs": {"images": ["23", 0], "filename_prefix": "mask"}}
    outcome = page.run(nodes)
    drawn, mask = (
        Image.open(server.base / "output" / outcome.outputs[key]["images"][0]["filename"]) for key in ("22", "24")
    )
    assert (drawn.size, mask.size) == ((128, 128 + BAR), (128, 128))
    assert mask.convert("L").getextrema() == (0, 255)
    (reason,) = page.run(nodes | {"6": graph(seed=7, cfg=1.0)["6"]}).of("execution_error")
    assert reason["exception_message"].startswith("no map, because cfg is 1")


def test_a_profile_by_name(page, server):
    nodes = graph(seed=43, profile=["12", 0])
    nodes["12"] = {"class_type": "MemGuard_LoadProfile", "inputs": {"name": "mine.json"}}
    said = json.dumps(page.refused(nodes))
    assert "profile 'mine.json' is not below models/memguard; run MemGuard Calibrate" in said
    model = report_of(page.run(graph(seed=43)))["model"]
    conditions = Conditions(model, "sd15", (16, 16), 14.6, 999, 1, 1, "any", "negative", "float32", 2.0)
    profile = Profile(conditions, {"text_noise_norm": fit([1 + i / 100 for i in range(60)])})
    (server.base / "models/memguard/mine.json").write_text(profile.to_json())
    found = report_of(page.run(nodes))["findings"][0]
    assert found["threshold_source"] == "profile of 60 ordinary prompts" and found["verdict"] == "ordinary"
