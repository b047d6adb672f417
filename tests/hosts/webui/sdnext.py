"""A real SD.Next on the CPU with this repository among its extensions, and the test bed as its model.

SDNEXT_ROOT names the folder of its source, SDNEXT_PYTHON the interpreter that has its requirements (default: this one).
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

from memguard import testbed
from memguard_pack.tests.hosts.webui.server import PATIENCE, REPOSITORY, Made, Server

SKIPS = "--skip-all --skip-git --skip-extensions --skip-requirements --quick --no-half --no-half-vae".split()
SETTINGS = {
    "sd_model_checkpoint": "Diffusers/testbed",
    "sd_checkpoint_autoload": True,
    "samples_format": "png",
    "sdnq_dequantize_compile": False,  # asks for triton after each generation
    "show_progress_type": "None",
}


def missing() -> str:
    """Return why SD.Next cannot be tested here, "" where it can."""
    return "" if os.environ.get("SDNEXT_ROOT") else "SDNEXT_ROOT is not set; see tests/hosts/webui/sdnext.py"


class SDNext(Server):
    """One running SD.Next.

    Args:
        folder: for its data, empty.

    """

    def __init__(self, folder: Path) -> None:
        self.host = self.called = "sdnext"
        self.headers, self.folder, self.forge, self.links = {}, folder, False, []
        testbed.pipeline().save_pretrained(folder / "models" / "Diffusers" / "testbed")
        (folder / "config.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
        (folder / "extensions").mkdir()
        for name, target in {"memguard": REPOSITORY, "zz-beside": Path(__file__).parent / "beside"}.items():
            (folder / "extensions" / name).symlink_to(target)
        self.output = folder / "server.log"
        self.log = self.output.open("w")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [os.environ.get("SDNEXT_PYTHON", sys.executable), "launch.py", *SKIPS, "--port", str(port)]
        command += ["--data-dir", str(folder), "--log", str(folder / "sdnext.log")]
        own = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "MEMGUARD_HOME": str(folder / "home")}
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own
        self.process = subprocess.Popen(
            command, cwd=os.environ["SDNEXT_ROOT"], env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        self.wait()

    def wait(self) -> None:
        """Wait until the model is loaded, which comes last."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if self.get("/sdapi/v1/checkpoint").get("class"):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError, ValueError):
                pass
            time.sleep(1)
        self.close()
        raise RuntimeError(f"the server did not start:\n{self.said()[-4000:]}")

    def generate(self, guard: dict | None = None, kind: str = "txt2img", wish: str = "", **changes) -> Made:
        """Generate; ``guard`` ticks MemGuard's box with these settings, ``wish`` asks the extension beside it."""
        body = {"prompt": "a red fox on a roof", "seed": 3, "steps": 4, "width": 128, "height": 128, "cfg_scale": 7.5}
        body |= {"sampler_name": "Euler"} | changes
        body["alwayson_scripts"] = {"Beside": {"args": [wish]}}
        if guard is not None:
            body["alwayson_scripts"]["MemGuard"] = {"args": [{"policy": "observe", "explain": "never"} | guard]}
        made = Made(self, self.post(f"/sdapi/v1/{kind}", body))
        time.sleep(1)  # jobs of one second have one name
        return made

    def left(self) -> list[int]:
        """Return how much of ours stood in the pipeline and the host's modules after each generation."""
        return [int(found) for found in re.findall(r"beside: (\d+) left", self.said())]
