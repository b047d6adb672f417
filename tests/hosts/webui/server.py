"""A real WebUI on the CPU with this repository among its extensions, beside a bad one, in a data folder of its own.

A1111_ROOT, FORGE_ROOT and FORGE_NEO_ROOT name the folders of their sources, A1111_PYTHON, FORGE_PYTHON and
FORGE_NEO_PYTHON the interpreters that have their requirements (default: this one), MEMGUARD_TESTBED_CHECKPOINT the file
that ``memguard testbed export --format checkpoint --vae kl`` wrote, with its .yaml beside it. Tests name Forge Neo
"neo", so that ``-k`` tells the hosts apart.
"""

import base64
import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[3]
PATIENCE = 900  # seconds; the machine may be busy
COMMON = "--skip-torch-cuda-test --skip-prepare-environment --skip-install --api".split()
FLAGS = {
    "a1111": "--use-cpu all --no-half --precision full --no-hashing --no-download-sd-model".split(),
    "forge": "--always-cpu --no-download-sd-model".split(),
    "neo": "--cpu --skip-python-version-check --no-hashing".split(),
}
NAMED = {"a1111": "A1111", "forge": "FORGE", "neo": "FORGE_NEO", "reforge": "REFORGE"}  # in the environment


def missing(host: str) -> str:
    """Return why a host cannot be tested here, "" where it can."""
    for name in (f"{NAMED[host]}_ROOT", "MEMGUARD_TESTBED_CHECKPOINT"):
        if not os.environ.get(name):
            return f"{name} is not set; see tests/hosts/webui/server.py"
    return ""


class Server:
    """One running WebUI.

    Args:
        host: "a1111", "forge" or "neo"; "reforge" where ``flags`` are given.
        folder: for its data, empty.
        ui: whether the page is served, and not the API alone.
        flags: of the host, in place of FLAGS.
        more: flags of the host, behind those.
        headers: sent with every request, such as a name and a password.
        extension: folder of one more extension.

    Attributes:
        called: the host's name in reports.
        upscaler: of hires; Neo has none of latents, and others only as files.
        forge: whether it is Forge or Forge Neo, which share an adapter.
        folder: of its data.
        checkpoints: folder of its checkpoints: the test bed's, and "twin", the same file.

    """

    def __init__(
        self,
        host: str,
        folder: Path,
        ui: bool = False,
        flags: Sequence[str] | None = None,
        more: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        extension: Path | None = None,
    ) -> None:
        self.host, self.forge, self.headers = host, host != "a1111", dict(headers or {})
        self.upscaler = "None" if host == "neo" else "Latent"
        self.called = NAMED[host].lower().replace("_", "-")
        root, checkpoint = Path(os.environ[f"{NAMED[host]}_ROOT"]), Path(os.environ["MEMGUARD_TESTBED_CHECKPOINT"])
        folder.mkdir(parents=True)
        # Forge's page loads no script where its data lie elsewhere
        self.folder = root if ui and self.forge else folder
        self.checkpoints = folder / "checkpoints"
        for name in (checkpoint.name, "twin.safetensors"):
            self.add_checkpoint(checkpoint, name)
        self.links = []
        here = Path(__file__).parent
        others = {"aa-neighbour": here / "neighbour", "detailer": here / "detailer"}
        others |= {} if extension is None else {extension.name: extension}
        for name, target in {"memguard": REPOSITORY, **others}.items():
            self.links.append(self.folder / "extensions" / name)
            self.links[-1].parent.mkdir(exist_ok=True)
            self.links[-1].symlink_to(target)
        self.output = folder / "server.log"
        self.log = self.output.open("w")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [os.environ.get(f"{NAMED[host]}_PYTHON", sys.executable), "launch.py", *COMMON]
        command += [*(FLAGS[host] if flags is None else flags), *more, *([] if ui else ["--nowebui"])]
        command += ["--port", str(port), "--data-dir", str(self.folder)]
        if host == "neo":
            command += ["--ckpt-dirs", str(self.checkpoints)]
        else:
            command += ["--ckpt-dir", str(self.checkpoints), "--ckpt", str(self.checkpoints / checkpoint.name)]
        own = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
        own |= {"SD_WEBUI_RESTARTING": "1", "MEMGUARD_HOME": str(folder / "home")}  # the first: opens no browser
        self.process = subprocess.Popen(
            command, cwd=root, env=os.environ | own, stdout=self.log, stderr=subprocess.STDOUT
        )
        self.wait()

    def wait(self) -> None:
        """Wait until the server answers."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            try:
                self.open("/memguard/v1/report").close()  # the last to come: others answer before they are whole
                # the hosts take an override back only for options that were set before
                with contextlib.suppress(urllib.error.HTTPError):  # A1111 1.9 has no such option
                    self.post("/sdapi/v1/options", {"skip_early_cond": 0.0})
                return
            except urllib.error.HTTPError as error:
                if error.code == 401:  # it asks for a login
                    return
                time.sleep(1)
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(1)
        self.close()
        raise RuntimeError(f"the server did not start:\n{self.said()[-4000:]}")

    def add_checkpoint(self, file: Path, name: str) -> None:
        """Link a checkpoint into the server's folder under a name, and its .yaml beside it.

        A1111 loads checkpoints of the same .yaml into one network, as it does with all of SD1.5; names that differ in
        the case of ".safetensors" share it.
        """
        self.checkpoints.mkdir(exist_ok=True)
        link = self.checkpoints / name
        link.symlink_to(file)
        if not link.with_suffix(".yaml").exists():
            link.with_suffix(".yaml").symlink_to(file.with_suffix(".yaml"))

    def said(self) -> str:
        """Return what the server has printed."""
        self.log.flush()
        return self.output.read_text(encoding="utf-8", errors="replace")

    def open(self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """Ask the server, by POST where there is a body; with other headers than its own where they are given."""
        sent = {"Content-Type": "application/json", **(self.headers if headers is None else headers)}
        return urllib.request.urlopen(urllib.request.Request(self.url + path, body, sent), timeout=PATIENCE)

    def get(self, path: str) -> dict:
        with self.open(path) as reply:
            return json.load(reply)

    def post(self, path: str, body: dict) -> dict:
        with self.open(path, json.dumps(body).encode()) as reply:
            return json.load(reply)

    def status(self, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Return the status of an answer, and its line where it says what is wrong."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with self.open(path, raw, headers) as reply:
                return reply.status, ""
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            try:
                return error.code, str(json.loads(text).get("detail", text))
            except ValueError:
                return error.code, text

    def generate(
        self, guard: dict | None = None, kind: str = "txt2img", neighbour: str = "", detail: str = "", **changes
    ) -> "Made":
        """Generate; ``guard`` ticks MemGuard's box with these settings, ``neighbour`` and ``detail`` ask the others."""
        body = {"prompt": "a red fox on a roof", "seed": 3, "steps": 4, "width": 128, "height": 128, "cfg_scale": 7.5}
        body |= {"sampler_name": "Euler", "scheduler": "Automatic"} | changes
        body["alwayson_scripts"] = {"Neighbour": {"args": [neighbour]}, "Detailer": {"args": [detail]}}
        if guard is not None:
            given = {"policy": "observe", "explain": "never"} | guard
            body["alwayson_scripts"]["MemGuard"] = {"args": [given]}
        return Made(self, self.post(f"/sdapi/v1/{kind}", body))

    def axes(self) -> list[str]:
        """Return the labels of the X/Y/Z plot's axes, in the order that its arguments count."""
        scripts = self.get("/sdapi/v1/script-info")
        plot = next(each for each in scripts if each["name"] == "x/y/z plot" and not each["is_img2img"])
        return plot["args"][0]["choices"]

    def plot(self, x: tuple[str, str], y: tuple[str, str] = ("Nothing", "")) -> dict:
        """Return what asks for a plot of lone pictures: the labels of its axes and their values."""
        known = self.axes()
        args = [known.index(x[0]), x[1], [], known.index(y[0]), y[1], [], 0, "", []]
        args += [True, True, False, False, False, False, False]  # a legend, and lone pictures
        args += [0, 0, True] if self.host == "neo" else [0, True]  # Neo asks for the number of rows, too
        return {"script_name": "x/y/z plot", "script_args": args}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()
        for link in self.links:
            link.unlink(missing_ok=True)


class Made:
    """What came back from one generation."""

    def __init__(self, server: Server, answer: dict) -> None:
        self.answer, self.coded = answer, answer["images"]
        self.info = json.loads(answer["info"])
        self.reports = server.get(f"/memguard/v1/report?job={self.info['job_timestamp']}")["reports"]

    @property
    def pictures(self) -> list[np.ndarray]:
        """The pictures, uint8 [H, W, 3]."""
        return [np.array(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB")) for each in self.coded]

    @property
    def finding(self) -> dict:
        """The first report's finding."""
        return self.reports[0]["findings"][0]
