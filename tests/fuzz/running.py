"""A bench with a tiny random model, its folder on disk, and a profile of it."""

import contextlib
import io
import logging
from pathlib import Path

from memguard.cli import main

from ..hosts import tiny
from .bench import Bench


def prepared(root: Path) -> Bench:
    """Return a bench whose work folder lies below ``root``."""
    logging.getLogger("diffusers").setLevel(logging.CRITICAL)
    bench = Bench(root / "work", tiny.sd())
    bench.model = root / "model"
    bench.pipe.save_pretrained(bench.model)
    bench.folder.mkdir()
    prompts = root / "ordinary.txt"
    prompts.write_text("".join(f"a cat number {i}\n" for i in range(60)))
    words = ["calibrate", str(prompts), "--model", str(bench.model), "--num-inference-steps", "2"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main([*words, "--out", str(root / "profiles")]) == 0
    (path,) = (root / "profiles").glob("*.json")
    bench.profile = path.read_text()
    return bench
