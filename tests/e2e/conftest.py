"""The real server and the real page. What is missing is named: these tests are skipped, never passed, without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .browser import Browser, executable
from .comfyui import CHECKPOINT, Server

RENDERERS = {"classic": False, "nodes2": True}


def frontends() -> list[str]:
    """Return the frontends to test: "installed", and the folders in COMFYUI_FRONTENDS (separated as in PATH)."""
    return ["installed", *filter(None, os.environ.get("COMFYUI_FRONTENDS", "").split(os.pathsep))]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """The test bed's checkpoint: the file in MEMGUARD_TESTBED_CHECKPOINT, or a fresh export."""
    given = os.environ.get("MEMGUARD_TESTBED_CHECKPOINT")
    if given:
        return Path(given)
    pytest.importorskip("diffusers", reason="diffusers is not installed, and MEMGUARD_TESTBED_CHECKPOINT is not set")
    from memguard.testbed import export

    file = tmp_path_factory.mktemp("checkpoint") / CHECKPOINT
    export.to_checkpoint(file)
    return file


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
