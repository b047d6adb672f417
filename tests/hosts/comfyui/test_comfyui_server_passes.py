"""Hires fix on a real server with the test bed: what the second pass paints, and what its report says."""

import numpy as np
import pytest
from PIL import Image

from memguard_pack.tests.hosts.comfyui.test_comfyui_server import graph, page, report_of, server  # noqa: F401

pytestmark = pytest.mark.slow


def hires(policy, denoise=0.6, **guard):
    """Return the usual workflow with a second sampler on the first one's latent, which is a little larger."""
    nodes = graph(seed=4, steps=12, policy=policy, clip=["1", 1], **guard)
    second = {**nodes["6"]["inputs"], "latent_image": ["10", 0], "denoise": denoise, "seed": 5}
    resize = {"samples": ["6", 0], "upscale_method": "bilinear", "width": 160, "height": 160, "crop": "disabled"}
    nodes |= {
        "10": {"class_type": "LatentUpscale", "inputs": resize},
        "11": {"class_type": "KSampler", "inputs": second},
        "12": {"class_type": "MemGuard_Report", "inputs": {"latent": ["11", 0], "memguard": ["5", 1]}},
    }
    nodes["8"]["inputs"]["samples"] = ["12", 0]
    nodes["13"] = {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": ["1", 2]}}
    nodes["14"] = {"class_type": "SaveImage", "inputs": {"images": ["13", 0], "filename_prefix": "first"}}
    return nodes


def picture(server, outcome, node):  # noqa: F811
    path = server.base / "output" / outcome.outputs[node]["images"][0]["filename"]
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float64).ravel()


def alike(a, b):
    return float(np.corrcoef(a, b)[0, 1])


def test_hires_does_not_paint_the_memorized_picture_again(page, server):  # noqa: F811
    unguarded, guarded = page.run(hires("observe")), page.run(hires("mitigate"))
    first, second = report_of(guarded), report_of(guarded, "12")
    assert first["verdict_after"] == "ordinary" and any(attempt["kept"] for attempt in first["attempts"])
    before, after = (alike(picture(server, unguarded, node), picture(server, guarded, node)) for node in ("14", "9"))

    assert before < 0.8 and after < 0.8
    assert second["verdict"] == first["verdict"] == "memorized" and second["findings"][-1]["carried"] == first["run"]
    assert second["attempts"][0]["kept"] and "as in the first pass" in second["message"]


def test_a_first_pass_from_the_cache_still_counts(page):  # noqa: F811
    page.run(hires("mitigate"))
    nodes = hires("mitigate")
    nodes["11"]["inputs"]["seed"] = 6
    outcome = page.run(nodes)
    assert "6" not in outcome.ran and "11" in outcome.ran
    assert report_of(outcome, "12")["attempts"][0]["kept"]
