"""Words and maps through the real ComfyUI server: of runs that are sampled, and of combined conditionings.

Run as test_comfyui_server.py: COMFYUI_ROOT and the test bed.
"""

import base64

import pytest
from PIL import Image

from memguard_pack.tests.hosts.comfyui.test_comfyui_server import (
    MEMORIZED,
    ORDINARY,
    graph,
    page,
    report_of,
    server,
)

__all__ = ["page", "server"]  # fixtures
pytestmark = pytest.mark.slow


def explained(**settings):
    return graph(**{"clip": ["1", 1], "explain": "always", **settings})


def words_of(attribution, part=0):
    spans = zip(attribution["spans"], attribution["weights"], strict=True)
    return {s["text"]: w for s, w in spans if s["group"] == "word" and s["part"] == part}


def picture(server, outcome, node="9"):
    return Image.open(server.base / "output" / outcome.outputs[node]["images"][0]["filename"]).tobytes()


def test_a_run_names_its_words_keeps_its_maps_and_its_picture(page, server):
    outcome = page.run(explained(seed=61))
    plain = graph(seed=61)
    plain["6"]["inputs"]["model"], plain["8"]["inputs"]["samples"] = ["1", 0], ["6", 0]
    del plain["5"], plain["7"]
    assert picture(server, outcome) == picture(server, page.run(plain))
    report = report_of(outcome)
    words = words_of(report["attribution"])
    assert max(words, key=words.get) == "Halley" and report["attribution"]["method"] == "gradient"
    assert len(report["curve"]) == 4 and report["extra_rows"] == 1
    kept = server.get(f"/memguard/v1/maps/{report['run']}")
    assert kept["size"] == [16, 16] and [row["name"] for row in kept["maps"]] == report["maps"]
    assert {len(base64.b64decode(row["data"])) for row in kept["maps"]} == {256}
    named = [report["attribution"]["spans"][row["span"]]["text"] for row in kept["maps"] if row["span"] is not None]
    assert sorted(named) == sorted(words)
    # the event at the end has what the node's output has
    assert outcome.of("memguard.report")[-1]["report"]["attribution"]["weights"] == report["attribution"]["weights"]


@pytest.mark.parametrize("show", ["bright_ending", "word"])
def test_the_overlay_shows_the_other_maps(show, page, server):
    nodes = explained(seed=62)
    inputs = {"image": ["8", 0], "latent": ["7", 0], "memguard": ["5", 1], "opacity": 0.6, "smooth": False}
    nodes["21"] = {"class_type": "MemGuard_Overlay", "inputs": {**inputs, "show": show, "word": "halley"}}
    nodes["23"] = {"class_type": "MaskToImage", "inputs": {"mask": ["21", 1]}}
    nodes["24"] = {"class_type": "SaveImage", "inputs": {"images": ["23", 0], "filename_prefix": show}}
    mask = Image.open(server.base / "output" / page.run(nodes).outputs["24"]["images"][0]["filename"])
    assert mask.size == (128, 128) and mask.convert("L").getextrema() == (0, 255)


def test_the_overlay_says_what_a_map_needs(page):
    nodes = graph(seed=63)
    inputs = {"image": ["8", 0], "latent": ["7", 0], "memguard": ["5", 1], "opacity": 0.6, "smooth": True}
    nodes["21"] = {"class_type": "MemGuard_Overlay", "inputs": {**inputs, "show": "bright_ending", "word": ""}}
    nodes["22"] = {"class_type": "SaveImage", "inputs": {"images": ["21", 0], "filename_prefix": "where"}}
    (reason,) = page.run(nodes).of("execution_error")
    assert reason["exception_message"].startswith(
        "no map 'bright_ending', because the run was not explained; connect clip to MemGuard"
    )


def test_two_areas_of_a_picture_have_rows_of_their_own(page):
    nodes = explained(seed=64)
    area = {"width": 64, "height": 128, "y": 0, "strength": 1.0}
    nodes["30"] = {"class_type": "CLIPTextEncode", "inputs": {"text": ORDINARY, "clip": ["1", 1]}}
    nodes["31"] = {"class_type": "ConditioningSetArea", "inputs": {"conditioning": ["2", 0], "x": 0, **area}}
    nodes["32"] = {"class_type": "ConditioningSetArea", "inputs": {"conditioning": ["30", 0], "x": 64, **area}}
    joined = {"conditioning_1": ["31", 0], "conditioning_2": ["32", 0]}
    nodes["33"] = {"class_type": "ConditioningCombine", "inputs": joined}
    nodes["6"]["inputs"]["positive"] = ["33", 0]
    nodes["34"] = {
        "class_type": "MemGuard_TokenAttribution",
        "inputs": {
            **{"model": ["1", 0], "clip": ["1", 1], "negative": ["3", 0], "latent": ["4", 0], "text": ""},
            **{"seed": 64, "method": "gradient", "respect_to": "input", "positive": ["33", 0]},
        },
    }
    outcome = page.run(nodes)
    run, node = report_of(outcome)["attribution"], outcome.outputs["34"]["memguard_attribution"][0]
    for found in (run, node):
        first, second = words_of(found), words_of(found, 1)
        assert max(first, key=first.get) == "Halley"
        assert list(second) == list(dict.fromkeys(ORDINARY.split())) and found["status"] == "ok"
    assert run["weights"] == pytest.approx(node["weights"], rel=1e-3)


def test_a_prompt_that_changes_on_the_way_has_one_row_of_words_at_work(page):
    nodes = explained(seed=65)
    nodes["30"] = {"class_type": "CLIPTextEncode", "inputs": {"text": ORDINARY, "clip": ["1", 1]}}
    for key, source, start, end in (("31", "2", 0.0, 0.5), ("32", "30", 0.5, 1.0)):
        inputs = {"conditioning": [source, 0], "start": start, "end": end}
        nodes[key] = {"class_type": "ConditioningSetTimestepRange", "inputs": inputs}
    joined = {"conditioning_1": ["31", 0], "conditioning_2": ["32", 0]}
    nodes["33"] = {"class_type": "ConditioningCombine", "inputs": joined}
    nodes["6"]["inputs"]["positive"] = ["33", 0]
    found = report_of(page.run(nodes))["attribution"]
    assert set(words_of(found, 1).values()) == {0.0} and min(words_of(found).values()) > 0
    assert found["notes"] == ["a part of the prompt does not act at the first step; it weighs nothing there"]


def test_texts_joined_to_one_conditioning(page):
    nodes = explained(seed=66)
    nodes["30"] = {"class_type": "CLIPTextEncode", "inputs": {"text": ORDINARY, "clip": ["1", 1]}}
    inputs = {"conditioning_to": ["2", 0], "conditioning_from": ["30", 0]}
    nodes["31"] = {"class_type": "ConditioningConcat", "inputs": inputs}
    nodes["6"]["inputs"]["positive"] = ["31", 0]
    found = report_of(page.run(nodes))["attribution"]
    assert [s["text"] for s in found["spans"] if s["group"] == "word"] == MEMORIZED.split() + ORDINARY.split()
    assert len(found["token_scores"]) == 154
