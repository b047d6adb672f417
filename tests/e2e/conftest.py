"""The real server and the real page. What is missing is named: these tests are skipped, never passed, without it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from memguard import calibration
from memguard.calibration import Conditions, Profile

from .browser import Browser, executable
from .comfyui import Server, checkpoint_in
from .driving import open_page

RENDERERS = {"classic": False, "nodes2": True}
SEEDS = itertools.count(1)  # a new one for each run, or it would come from the cache


def frontends() -> list[str]:
    """Return the frontends to test: "installed", and the folders in COMFYUI_FRONTENDS (separated as in PATH)."""
    return ["installed", *filter(None, os.environ.get("COMFYUI_FRONTENDS", "").split(os.pathsep))]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """The test bed's checkpoint: the file in MEMGUARD_TESTBED_CHECKPOINT, or a fresh export."""
    return checkpoint_in(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session", params=frontends(), ids=lambda path: Path(path).name if path != "installed" else path)
def server(request, tmp_path_factory):
    root = os.environ.get("COMFYUI_ROOT")
    if not root:
        pytest.skip("COMFYUI_ROOT is not set to a ComfyUI folder")
    pytest.importorskip("aiohttp", reason="aiohttp is not installed; run these tests with ComfyUI's Python")
    checkpoint = request.getfixturevalue("checkpoint")  # after the skips: the export takes a minute
    frontend = None if request.param == "installed" else Path(request.param)
    running = Server(Path(root), tmp_path_factory.mktemp("comfyui") / "base", checkpoint, frontend)
    yield running
    running.close()


@pytest.fixture
def browser(request, tmp_path):
    if executable() is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    request.getfixturevalue("server")
    page = Browser(tmp_path / "chromium")
    yield page
    page.close()


@pytest.fixture(params=RENDERERS)
def page(request, browser, server):
    """The page with one of the two renderers."""
    server.setting("Comfy.VueNodes.Enabled", RENDERERS[request.param])
    open_page(browser, server)
    return browser


@pytest.fixture
def flagging(browser, server: Server, checkpoint):
    """A profile by which every prompt is flagged: these tests are of the page, not of the detection."""
    from safetensors import safe_open

    prefix = "model.diffusion_model."
    with safe_open(checkpoint, "pt") as file:
        model = calibration.fingerprint(file.get_tensor(key) for key in file.keys() if key.startswith(prefix))  # noqa: SIM118
    conditions = Conditions(model, "sd15", (16, 16), 14.6146, 999.0, 1, 1, "test", "negative", "float16", 1.0)
    tiny = calibration.fit([1e-6 * (1 + i / 100) for i in range(320)])
    path = calibration.save(Profile(conditions, {"text_noise_norm": tiny}), server.base / "models/memguard")
    yield
    path.unlink()
