"""A real ComfyUI server with this repository linked in as a pack, in a folder of its own.

COMFYUI_FLAGS replaces --cpu: "--force-fp16" or "--lowvram" on a GPU, for example.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = "memguard-testbed.safetensors"
START = 240  # seconds; a busy machine needs a minute to import torch


def checkpoint_in(folder: Path) -> Path:
    """Return the test bed's checkpoint: the file in MEMGUARD_TESTBED_CHECKPOINT, or a fresh export into a folder."""
    given = os.environ.get("MEMGUARD_TESTBED_CHECKPOINT")
    if given:
        return Path(given)
    import pytest

    pytest.importorskip("diffusers", reason="diffusers is not installed, and MEMGUARD_TESTBED_CHECKPOINT is not set")
    from memguard.testbed import export

    export.to_checkpoint(folder / CHECKPOINT)
    return folder / CHECKPOINT


class Server:
    """The running server.

    Args:
        root: ComfyUI's folder.
        base: an empty folder for models, settings and pictures.
        checkpoint: the test bed's checkpoint.
        frontend: folder of another frontend than the installed one.
        user: folder of another user directory than the base's own.

    """

    def __init__(
        self, root: Path, base: Path, checkpoint: Path, frontend: Path | None = None, user: Path | None = None
    ) -> None:
        self.base = base
        for folder in ("custom_nodes", "models/checkpoints", "models/memguard", "input", "output", "user/default"):
            (base / folder).mkdir(parents=True)
        (base / "custom_nodes/memguard").symlink_to(REPOSITORY, target_is_directory=True)
        (base / "models/checkpoints" / CHECKPOINT).symlink_to(checkpoint)
        # no welcome dialog over the page
        (base / "user/default/comfy.settings.json").write_text(json.dumps({"Comfy.TutorialCompleted": True}))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [
            *(os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--disable-api-nodes"),
            *os.environ.get("COMFYUI_FLAGS", "--cpu").split(),
            *("--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)),
            *("--database-url", "sqlite:///:memory:", "--preview-method", "none"),
            *(("--front-end-root", str(frontend)) if frontend else ()),
            *(("--user-directory", str(user)) if user else ()),
        ]
        environment = {**os.environ, "MEMGUARD_HOME": str(base / "memguard"), "HF_HUB_OFFLINE": "1"}
        self.log = base / "server.log"
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, cwd=root, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def get(self, path: str) -> Any:
        """Return the JSON under a path."""
        with urllib.request.urlopen(self.url + path, timeout=60) as reply:
            return json.load(reply)

    def setting(self, name: str, value: Any) -> None:
        """Change a setting of the page, as the page itself does."""
        body = json.dumps(value).encode()
        request = urllib.request.Request(f"{self.url}/settings/{name}", body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=60).close()

    def close(self) -> None:
        """End the server."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self) -> None:
        end = time.monotonic() + START
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended: {self.log.read_text()[-2000:]}")
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        raise TimeoutError(f"ComfyUI did not start in {START} s: {self.log.read_text()[-2000:]}")
