"""What the nodes say that hang on a MemGuard node which is bypassed: their input is empty, and the graph runs on."""

import json

import torch

from memguard_pack.memguard.hosts.comfyui.latents import NOT_WATCHED
from memguard_pack.nodes.compare import MemGuardCompare
from memguard_pack.nodes.overlay import MemGuardOverlay
from memguard_pack.nodes.report import MemGuardReport


def test_no_node_needs_the_handle():
    for node in (MemGuardReport, MemGuardOverlay, MemGuardCompare):
        inputs = node.INPUT_TYPES()
        assert "memguard" not in inputs["required"] and "memguard" in inputs["optional"]


def test_the_report_says_that_the_run_was_not_watched():
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    found, score, percentile, memorized, verdict, text = MemGuardReport.execute(latent).result
    assert found is latent and (score, percentile, memorized, verdict) == (-1.0, -1.0, False, "unknown")
    assert json.loads(text)["message"] == f"MemGuard: no score, because {NOT_WATCHED}"


def test_the_overlay_lets_the_picture_through():
    image = torch.rand(2, 16, 24, 3)
    out = MemGuardOverlay.execute(image, {"samples": torch.zeros(2, 4, 2, 3)}, 0.6, True)
    shown, mask = out.result
    assert shown is image and mask.shape == (2, 16, 24) and not mask.any()
    assert out.ui == {"text": [f"MemGuard: {NOT_WATCHED}"]}
