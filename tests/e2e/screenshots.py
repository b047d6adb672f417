"""Screenshots of the example workflows after a real run, and the templates' thumbnails.

Calibrates first, as a person would, so that every verdict is the model's own. Later calls can take the profiles over:

    COMFYUI_ROOT=... python -m tests.e2e.screenshots FOLDER --checkpoint FILE --profiles FOLDER --thumbnails
    ... --profiles FOLDER --example watch_a_run_and_warn --nodes2 --light

The working directory is the repository; Python is ComfyUI's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from PIL import Image

from .browser import Browser
from .comfyui import REPOSITORY, Server
from .driving import open_example, open_page, press_run

CALIBRATE = "calibrate_a_checkpoint"
EXAMPLES = (
    CALIBRATE,
    "watch_a_run_and_warn",
    "check_a_prompt_before_sampling",
    "stop_a_memorized_run",
    "find_the_words",
    "see_where_it_copies",
    "mitigate_a_memorized_run",
    "optimize_a_prompt",
    "find_and_mask_neurons",
)
SIZE = (1500, 900)
GRAPH = (60, 80, 1500, 900)  # of a screenshot: what is not menu
THUMBNAIL = 400  # pixels wide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--frontend", type=Path, help="folder of another frontend than the installed one")
    parser.add_argument("--profiles", type=Path, help="folder that profiles are taken from and written to")
    parser.add_argument("--example", choices=EXAMPLES, nargs="+", default=EXAMPLES, help="which ones; default: all")
    parser.add_argument("--nodes2", action="store_true", help="the renderer Nodes 2.0")
    parser.add_argument("--light", action="store_true")
    parser.add_argument("--thumbnails", action="store_true", help="also write example_workflows/*.jpg")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary) / "base"
        server = Server(Path(os.environ["COMFYUI_ROOT"]), base, args.checkpoint.resolve(), args.frontend)
        try:
            for file in args.profiles.glob("*.json") if args.profiles else ():
                shutil.copy(file, base / "models/memguard")
            shoot(server, args)
            for file in (base / "models/memguard").glob("*.json") if args.profiles else ():
                shutil.copy(file, args.profiles)
        finally:
            server.close()


def shoot(server: Server, args: argparse.Namespace) -> None:
    """Run each example and write its picture."""
    server.setting("Comfy.VueNodes.Enabled", args.nodes2)
    server.setting("Comfy.ColorPalette", "light" if args.light else "dark")
    server.setting("Comfy.Minimap.Visible", False)
    for name in args.example:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # Chromium ends late
            browser = Browser(Path(profile), SIZE)
            try:
                # the second time from the cache: a slow first run outlasts its toast
                for _ in range(2):
                    open_page(browser, server)
                    open_example(browser, name)
                    press_run(browser, 3000 if name == CALIBRATE else 900)
                time.sleep(4)  # the picture and the toast fade in
                path = args.folder / f"{name}.png"
                browser.screenshot(path)
            finally:
                browser.close()
        if args.thumbnails:
            with Image.open(path) as picture:
                part = picture.convert("RGB").crop(GRAPH)
                part.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
                part.save(REPOSITORY / f"example_workflows/{name}.jpg", quality=82, optimize=True)
        print(path, flush=True)


if __name__ == "__main__":
    main()
